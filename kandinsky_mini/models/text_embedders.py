"""From text to embeddings: Qwen2.5-VL's text path encodes the words, CLIP's text model encodes the prompt as a whole.

The classes are transformers' own. They load mini's tiny encoders as well as the released ones.
"""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextModel,
)

from ..config import TextConfig
from ..limits import check_finite
from .checkpoint import load_pretrained
from .text_embeds import TextEmbeds

EXPANSION_TOKENS = 256  # the longest answer, as in the released code


class TextEmbedder(nn.Module):
    """Hold both text encoders and their tokenizers. The writer is the model that the first encoder is a part of."""

    def __init__(
        self,
        text_encoder: Qwen2_5_VLTextModel,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder2: CLIPTextModel,
        tokenizer2: PreTrainedTokenizerBase,
        config: TextConfig,
        writer: Qwen2_5_VLForConditionalGeneration | None = None,
    ):
        super().__init__()
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.text_encoder2, self.tokenizer2 = text_encoder2, tokenizer2
        self.config, self.writer = config, writer

    @property
    def device(self) -> torch.device:
        return self.text_encoder.device

    def tokenize(self, prompts: list[str], image: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids (B, L) for the first encoder and (B, L2) for the second.

        All prompts must have the same number of tokens. They are put in the template of an image or of a video.
        """
        config = self.config
        template, crop_start = config.template(image)
        ids = self.tokenizer(
            [template.replace("{}", prompt) for prompt in prompts],
            max_length=crop_start + config.max_length,
            truncation=True,
        )["input_ids"]
        ids2 = self.tokenizer2(
            prompts,
            max_length=config.pooled_max_length,
            padding="max_length",
            truncation=True,
        )["input_ids"]
        # On the CPU, whatever the caller's default device is.
        return torch.tensor(ids, device="cpu"), torch.tensor(ids2, device="cpu")

    def forward(self, ids: torch.Tensor, ids2: torch.Tensor, image: bool = False) -> TextEmbeds:
        """Token ids (B, L) and (B, L2) -> text (B, L, in_text_dim), pooled (B, 1, in_text_dim2)."""
        hidden = self.text_encoder(input_ids=ids, use_cache=False).last_hidden_state
        pooled = self.text_encoder2(input_ids=ids2).pooler_output
        _, crop_start = self.config.template(image)
        return TextEmbeds(hidden[:, crop_start:], pooled[:, None])

    @torch.no_grad()
    def encode(self, prompt: str, image: bool = False) -> TextEmbeds:
        """Encode a prompt of an image or a video, without padding: text (L, in_text_dim), pooled (1, in_text_dim2).

        Raises:
            FloatingPointError: an encoder returns values that are not finite.
        """
        text, pooled = self(*(ids.to(self.device) for ids in self.tokenize([prompt], image)), image)
        check_finite(text, "the text embedding")
        check_finite(pooled, "the pooled text embedding")
        return TextEmbeds(text[0], pooled[0])

    @torch.no_grad()
    def expand(self, prompt: str) -> str:
        """Return the writer's longer description of what a prompt says.

        Each token is the likeliest one, so the same prompt gets the same answer. An empty answer gives the prompt back.
        """
        question = self.config.expansion_template.replace("{}", prompt)
        ids = torch.tensor([self.tokenizer(question)["input_ids"]], device=self.device)
        settings = copy.deepcopy(self.writer.generation_config)
        settings.update(do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=EXPANSION_TOKENS)
        answer = self.writer.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return self.tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True).strip() or prompt

    def excess_tokens(self, prompt: str, image: bool = False) -> int:
        """Return how many tokens of the prompt are beyond the configuration's max_length. `encode` cuts these off."""
        template, crop_start = self.config.template(image)
        ids = self.tokenizer(template.replace("{}", prompt), verbose=False)["input_ids"]
        return max(0, len(ids) - crop_start - self.config.max_length)

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the prompt's words that are not in the vocabulary.

        The released tokenizers split any word into known pieces, so for them the list is always empty.
        """
        if self.tokenizer.unk_token is None:
            return []
        pieces = self.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(prompt)
        unk = self.tokenizer.unk_token_id
        return [word for word, _ in pieces if unk in self.tokenizer(word, add_special_tokens=False)["input_ids"]]


def load_text_embedder(
    text_encoder: Path,
    text_encoder2: Path,
    config: TextConfig,
    dtype: torch.dtype,
    tokenizers: tuple[Path, Path] | None = None,
) -> TextEmbedder:
    """Load both encoders and their tokenizers from folders that save_pretrained wrote.

    If the configuration has an expansion_template, all of Qwen is loaded, apart from what reads pictures.

    Args:
        dtype: that of Qwen. CLIP stays in float32, as in the released code.
        tokenizers: the folders of the tokenizers, by default those of their encoders.
    """
    tokenizer, tokenizer2 = tokenizers or (text_encoder, text_encoder2)
    if config.expansion_template:
        writer = without_pictures(load_pretrained(Qwen2_5_VLForConditionalGeneration, text_encoder, dtype=dtype))
        qwen = writer.model.language_model
    else:
        writer, qwen = None, load_pretrained(Qwen2_5_VLTextModel, text_encoder, dtype=dtype)
    return TextEmbedder(
        qwen,
        load_pretrained(AutoTokenizer, tokenizer),
        load_pretrained(CLIPTextModel, text_encoder2, dtype=torch.float32),
        load_pretrained(AutoTokenizer, tokenizer2),
        config,
        writer,
    ).eval()


def without_pictures(qwen: Qwen2_5_VLForConditionalGeneration) -> Qwen2_5_VLForConditionalGeneration:
    """Free the memory of the part that reads pictures, and return the model. It can still read and write text."""
    qwen.model.visual = None
    return qwen
