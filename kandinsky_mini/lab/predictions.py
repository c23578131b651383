"""Guess before you measure: a question with buttons, and later the answer beside the guess."""

from collections.abc import Sequence

import ipywidgets
from IPython.display import display


class Prediction:
    """A question that waits for a guess, which is None until a button is pressed."""

    def __init__(self, question: str, choices: Sequence[str]):
        self.choices = list(choices)
        self._buttons = ipywidgets.ToggleButtons(options=self.choices, value=None, layout={"margin": "8px 0 0 6px"})
        self._buttons.style.button_width = "auto"
        # The question is printed as well, for readers whose page shows no widgets.
        print(question, *(f"- {choice}" for choice in self.choices), sep="\n")
        display(self._buttons)

    @property
    def guess(self) -> str | None:
        return self._buttons.value

    def reveal(self, measured: str) -> None:
        """Print the measured answer beside the guess.

        Raises:
            ValueError: the measured answer is not among the choices, so that nobody could have guessed it.
        """
        if measured not in self.choices:
            raise ValueError(f"measured {measured!r}, which is none of {self.choices}")
        verdict = "no guess" if self.guess is None else f"you guessed {self.guess}"
        print(f"{verdict}; answer: {measured}")


def predict(question: str, choices: Sequence[str]) -> Prediction:
    """Ask a question with a button for each choice. Call `reveal(measured)` on the result to show guess and answer."""
    return Prediction(question, choices)
