// A slide is 1280 x 720. What is larger than the room that text and code leave is made smaller.
const WIDTH = 1280, HEIGHT = 720;

function fit(slide) {
  const pictures = [...slide.querySelectorAll(".jp-OutputArea-output img, .jp-OutputArea-output video")];
  for (const picture of pictures) picture.style.maxHeight = "";
  for (let tries = 0; tries < 5; tries++) {
    const excess = slide.scrollHeight - HEIGHT;
    if (excess <= 0) return;
    const all = pictures.reduce((sum, picture) => sum + picture.offsetHeight, 0);
    for (const picture of pictures) picture.style.maxHeight = `${Math.floor(picture.offsetHeight * (1 - excess / all))}px`;
  }
}

async function onSlide({ currentSlide }) {
  await Promise.all([...currentSlide.querySelectorAll("img")].map((picture) => picture.decode()));  // they have sizes then
  fit(currentSlide);
  for (const video of document.querySelectorAll("video")) video.pause();
  for (const video of currentSlide.querySelectorAll("video")) video.play();
}

function toggleDark() {
  document.documentElement.classList.toggle("dark");
}

if (new URLSearchParams(window.location.search).has("dark")) toggleDark();
Reveal.initialize({
  width: WIDTH, height: HEIGHT, margin: 0.02, center: false, hash: true, transition: "none", slideNumber: "c/t", controls: false,
  plugins: [RevealNotes],
  keyboard: { 68: toggleDark }, // D
});
Reveal.on("ready", onSlide);
Reveal.on("slidechanged", onSlide);
