"""All colours of the small world, by name. Backgrounds are muted, so that figures and hats stand out."""

PALETTE = {
    # hats, each with a darker shade for its band
    "red": "#e23b2e", "red band": "#9c1c1c",
    "yellow": "#ffd012", "yellow band": "#c98a00",
    "green": "#1f9f4f", "green band": "#0c6433",
    "blue": "#2a6bea", "blue band": "#173f9e",
    "purple": "#9a48d8", "purple band": "#5f2494",
    "black": "#25232b", "black band": "#0b0a0e",
    "hat rim": "#fff6e3",
    # faces
    "eye white": "#ffffff", "pupil": "#2a2030", "blush": "#f39a8d",
    # animals; "far" is the shade of the legs on the far side
    "cat": "#f08a3c", "cat far": "#c96a24", "cat stripe": "#cf6a22",
    "cream": "#fff0d9", "cat nose": "#e0606a",
    "dog": "#a9713f", "dog far": "#83532a", "dog ear": "#6e4322", "dog snout": "#f6e3c5",
    "rabbit": "#d8cad2", "rabbit far": "#b3a2ae", "rabbit belly": "#f6eef1", "rabbit pink": "#f0a5b0",
    "bear": "#5d3a28", "bear far": "#442818", "bear muzzle": "#d2a679",
    "duck": "#ffe36e", "duck far": "#f0c450", "duck wing": "#eebc3c",
    "beak": "#f47b20", "beak far": "#cf5f10",
    "pig": "#f5a3b5", "pig far": "#d87f95", "snout": "#e77c95", "nostril": "#a8415f",
    "shadow": "#1d2440",
    # backgrounds, from top to bottom
    "meadow sky": "#a5d5e8", "meadow haze": "#eaf5ea", "sun": "#ffe08a", "cloud": "#ffffff",
    "meadow far": "#bcd9a0", "meadow hill": "#a3ca86", "meadow": "#8cba6e", "tree": "#8fbd83",
    "beach sky": "#b4deea", "beach haze": "#fdeedb", "sea": "#7cc4cc", "sea near": "#a6dcd8",
    "sand": "#eed9b3", "trunk": "#b08a64", "palm": "#7fae8a", "palm far": "#679a7c",
    "snow sky": "#c3daee", "snow haze": "#e9f1f8", "snow far": "#cfdeee", "snow hill": "#dfeaf5",
    "snow": "#f7fafd", "fir": "#7fa8a6", "fir snow": "#f4f9fc",
    "night sky": "#2c3873", "night haze": "#6470b0", "moon": "#fbeec2", "star": "#f4e6b4",
    "night far": "#41808c", "night hill": "#377480", "night": "#4a9092",
}  # fmt: skip
