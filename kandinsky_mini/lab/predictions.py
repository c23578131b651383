"""Guess before you measure: a question with buttons, whose answer is shown beside the guess later."""

from collections.abc import Sequence

import ipywidgets
from IPython.display import display


class Prediction:
    """A guess: None until a button is pressed."""

    def __init__(self, question: str, choices: Sequence[str]):
        self.choices = list(choices)
        self._buttons = ipywidgets.ToggleButtons(options=self.choices, value=None, layout={"margin": "8px 0 0 6px"})
        self._buttons.style.button_width = "auto"
        print(question, *(f"- {choice}" for choice in self.choices), sep="\n")  # also where no widget shows
        display(self._buttons)

    @property
    def guess(self) -> str | None:
        return self._buttons.value

    def reveal(self, measured: str) -> None:
        """Print what was measured beside the guess.

        Raises:
            ValueError: what was measured is none of the choices, so that nobody could have guessed it.
        """
        if measured not in self.choices:
            raise ValueError(f"measured {measured!r}, which is none of {self.choices}")
        verdict = "no guess" if self.guess is None else f"you guessed {self.guess}"
        print(f"{verdict}; answer: {measured}")


def predict(question: str, choices: Sequence[str]) -> Prediction:
    """Ask, with a button for each choice; `reveal(measured)` of what it returns shows guess and answer."""
    return Prediction(question, choices)
