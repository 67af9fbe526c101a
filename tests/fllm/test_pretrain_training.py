"""Training of a base model: batches, scores, schedule, interruption, precision."""

from __future__ import annotations

import hashlib
import json
import math
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from device_models import load_device
from fllm.baselines import language_baselines
from fllm.model.base import load_model
from fllm.model.pretrain import (
    SIZES,
    BaseRecipe,
    Progress,
    Sources,
    Stopped,
    TextRecipe,
    Workplace,
    build_base,
    build_text_base,
    steps_for,
)
from fllm.model.pretrain import training as loop
from fllm.model.pretrain.bits import bits, reference_losses, text_loss
from fllm.model.pretrain.embeddings import embed_by_counts
from fllm.model.pretrain.lessons import PassageBatches, Sequences, TextLessons, next_token_losses
from fllm.model.pretrain.network import new_model, train_tokenizer
from fllm.model.pretrain.passages import Passages
from fllm.model.pretrain.recipe import parameters
from fllm.model.pretrain.tokens import load_tokens
from fllm.model.pretrain.training import Losses, new_reader, schedule, train
from hwsim import gain_cell_layers
from tests.fllm.made_up_text import SMALL, documents

pytestmark = pytest.mark.filterwarnings("ignore:.*no effect of")


NAMES = ("gaincell_28nm", "ideal")


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "corpus.txt"
    file.write_text("\n\n".join(documents(120)), encoding="utf-8")
    return file


def begun(folder: Path, recipe: TextRecipe | BaseRecipe = SMALL) -> Workplace:
    workplace = Workplace(folder)
    workplace.begin({"recipe": asdict(recipe)})
    return workplace


def build(folder: Path, corpus: Path, recipe: TextRecipe = SMALL, report: Callable = lambda _: None) -> dict:
    return build_text_base(begun(folder, recipe), recipe, Sources([str(corpus)], [], "text"), report)


def digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    """A model that was built without interruption."""
    folder = tmp_path_factory.mktemp("built") / "whole"
    build(folder, corpus_file)
    return folder


# ---- sizes


@pytest.mark.parametrize(("name", "least", "most"), [("1m", 1e6, 1.5e6), ("3m", 3e6, 3.5e6), ("10m", 1e7, 1.1e7)])
def test_sizes_are_what_they_are_called(name: str, least: float, most: float) -> None:
    recipe = SIZES[name]
    assert least < parameters(recipe) < most
    tokenizer = train_tokenizer(["some text"], SMALL)
    model = new_model(recipe, recipe.vocabulary, tokenizer)
    extra = sum(p.numel() for p in model.parameters()) / parameters(recipe) - 1
    assert 0 < extra < 0.01  # norms and range scalers


@pytest.mark.parametrize("recipe", SIZES.values(), ids=SIZES)
def test_sizes_fill_sub_tiles_and_can_be_packed(recipe: TextRecipe) -> None:
    assert recipe.hidden_size == 64 * recipe.heads
    assert not recipe.intermediate_size % 4 and not recipe.vocabulary % 16
    assert recipe.vocabulary <= 2**16


def test_steps_for_tokens() -> None:
    recipe = SIZES["1m"]
    a_step = recipe.sequences * recipe.context + recipe.passages * 90
    assert steps_for(recipe, 10 * a_step) == 10
    assert steps_for(recipe) == pytest.approx(20 * parameters(recipe) / a_step, abs=1)
    assert steps_for(recipe, 1) == 1


def test_schedule_has_two_stages() -> None:
    recipe = replace(SMALL, steps=100, warm_up=10, learning_rate=1.0, stage_two_rate=0.5, weight_decay=0.1)
    rates, decays = zip(*(schedule(step, recipe) for step in range(100)), strict=True)
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9]
    assert rates[49] > 0.5 >= rates[50] > rates[99] > 0
    assert set(decays[:50]) == {0.1} and set(decays[50:]) == {0.0}


@pytest.mark.parametrize("share", [1.0, 4.0])
def test_embeddings_may_have_a_rate_of_their_own(share: float) -> None:
    """One step of Adam moves each weight by its learning rate."""
    recipe = replace(SMALL, steps=1, warm_up=1, learning_rate=0.01, weight_decay=0.0, embedding_rate=share)
    tokenizer = train_tokenizer(["some text"], SMALL)
    model = new_model(recipe, len(tokenizer), tokenizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def lesson(_: int) -> Losses:
        ids = torch.arange(32)[None]
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        return Losses(next_token_losses(model, hidden, ids.roll(-1, 1)), None)

    train(model, None, lesson, recipe, lambda _: None)
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in model.named_parameters()}
    assert moved["model.embed_tokens.weight"] == pytest.approx(0.01 * share, rel=1e-3)
    assert moved["model.layers.0.mlp.down_proj.weight"] == pytest.approx(0.01, rel=1e-3)


# ---- first embeddings


def test_tokens_of_one_topic_begin_close_to_each_other() -> None:
    """Two topics of 40 tokens each, pieces of one topic alone; token 99 is never seen."""
    draw = np.random.default_rng(0)
    stream = np.concatenate([draw.integers(40, size=64) + 40 * (i % 2) for i in range(300)]).astype(np.uint16)
    torch.manual_seed(0)
    embeddings = torch.nn.Embedding(100, 16)
    with torch.no_grad():
        embeddings.weight *= 0.02
    before = embeddings.weight.detach().clone()
    assert embed_by_counts(embeddings, stream, SMALL) == 80
    after = embeddings.weight.detach()
    assert torch.equal(after[80:], before[80:])
    lengths = after[:80].norm(dim=1)
    torch.testing.assert_close(lengths, before.norm(dim=1).mean().expand(80))
    alike = (after[:80] @ after[:80].T) / lengths[:, None] / lengths
    same = torch.block_diag(torch.ones(40, 40), torch.ones(40, 40)).bool()
    off = ~torch.eye(80, dtype=torch.bool)
    assert alike[same & off].mean() > alike[~same].mean() + 0.2
    again = torch.nn.Embedding.from_pretrained(before.clone())
    embed_by_counts(again, stream, SMALL)
    assert torch.equal(again.weight, after)


def test_short_streams_leave_embeddings_as_they_are() -> None:
    embeddings = torch.nn.Embedding(100, 16)
    before = embeddings.weight.detach().clone()
    assert embed_by_counts(embeddings, np.zeros(64 * 16, np.uint16), SMALL) == 0
    assert torch.equal(embeddings.weight, before)


# ---- batches


def test_every_piece_once_an_epoch() -> None:
    stream = np.arange(SMALL.context * 9 + 1, dtype=np.uint16)  # 8 pieces and their room to move
    found = Sequences(stream, SMALL)
    epochs = [torch.cat([found.batch(4 * e + i) for i in range(4)]) for e in (0, 1)]
    for rows in epochs:
        assert rows.shape == (8, SMALL.context + 1)
        assert (rows.diff(dim=1) == 1).all()  # a run of the stream
        assert sorted((rows[:, 0] // SMALL.context).tolist()) == list(range(8))
    assert epochs[0][:, 0].tolist() != epochs[1][:, 0].tolist()
    assert torch.equal(Sequences(stream, SMALL).batch(5), found.batch(5))  # a function of the step alone


def test_passages_of_like_length_share_a_batch() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=100)
    passages = Passages(np.zeros(lengths.sum(), np.uint16), np.concatenate([[0], lengths.cumsum()]), np.zeros((100, 4)))
    found = PassageBatches(passages, SMALL)
    epoch = [found.batch(step) for step in range(33)]
    assert sorted(np.concatenate(epoch)) == sorted(set(np.concatenate(epoch).tolist())) and len(epoch[0]) == 3
    spread = np.mean([np.ptp(lengths[batch]) for batch in epoch])
    assert spread < 0.4 * np.mean([np.ptp(lengths[i : i + 3]) for i in range(97)])
    np.testing.assert_array_equal(PassageBatches(passages, SMALL).batch(40), found.batch(40))


# ---- scores


@pytest.mark.parametrize("length", [2, 20, 33, 34, 100, 161])
def test_every_token_is_scored_once_with_half_a_context(whole: Path, length: int) -> None:
    model = load_model(whole, load_device("ideal"), 1e-5, []).model
    stream = np.random.default_rng(length).integers(0, 256, size=length).astype(np.uint16)
    found = text_loss(model, stream, batch=3)  # type: ignore[arg-type]
    context, half, naive = SMALL.context, SMALL.context // 2, 0.0
    ids = torch.from_numpy(stream.astype(np.int64))
    starts = [*range(0, max(0, length - 1 - context), half), max(0, length - 1 - context)]
    with torch.no_grad():
        for place in range(1, length):
            start = next(s for s in starts if s < place <= s + context)
            logits = model(input_ids=ids[None, start:place], use_cache=False).logits[0, -1]
            naive -= logits.log_softmax(-1)[ids[place]].item()
    assert found == pytest.approx(naive, rel=2e-4)


def test_bits_per_byte() -> None:
    assert bits(math.log(2) * 80, 10) == pytest.approx(8.0)


def test_references_are_the_baselines_of_language_modelling() -> None:
    draw = np.random.default_rng(0)
    train, test = (draw.zipf(1.5, size=n).clip(max=49).astype(np.uint16) for n in (3000, 400))
    wanted = language_baselines([train.tolist()], [test.tolist()], 50)
    for name, loss in reference_losses(train, test, 50).items():
        assert loss / 399 == pytest.approx(math.log(wanted[name]["perplexity"]))


# ---- the whole


def test_built_model_loads_and_says_what_it_is(whole: Path, corpus_file: Path) -> None:
    provenance = json.loads((whole / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["recipe"] == asdict(SMALL)
    assert provenance["corpus_sha256"] == hashlib.sha256(corpus_file.read_bytes()).hexdigest()
    assert set(provenance["bits_per_byte"]) == {"gaincell_28nm", "ideal", "unigram", "bigram"}
    assert provenance["tokens_seen"] > SMALL.steps * SMALL.sequences * SMALL.context
    assert not (whole / "training").exists()
    loaded = load_model(whole, load_device("gaincell_28nm"), 1e-5, [])
    assert not loaded.ternarised and not loaded.calibrated
    kidney = "kidney1"
    assert kidney not in (whole / "provenance.json").read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs the list of mapped files of Linux")
def test_tokens_are_not_mapped_when_they_are_taken_away(
    tmp_path: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, mapped = Workplace.finish, []

    def watched(self: Workplace, provenance: dict) -> None:
        mapped.append(".u16" in Path("/proc/self/maps").read_text(encoding="utf-8"))
        finish(self, provenance)

    monkeypatch.setattr(Workplace, "finish", watched)
    build(
        tmp_path / "model", corpus_file, report=lambda _: mapped.append(".u16" in Path("/proc/self/maps").read_text())
    )
    assert mapped == [True] * SMALL.steps + [False]


@pytest.mark.parametrize("step", [1, 4])
def test_resumed_training_is_bit_identical(tmp_path: Path, corpus_file: Path, whole: Path, step: int) -> None:
    """Ctrl-C in a step lets it end, keeps its state, and leaves no model behind."""

    def interrupt(progress: Progress) -> None:
        if progress.step == step:
            signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "model"
    with pytest.raises(Stopped):
        build(folder, corpus_file, report=interrupt)
    assert [path.name for path in folder.iterdir()] == ["training"]
    steps: list[int] = []
    sources = Sources([str(corpus_file)], [], "text")
    build_text_base(Workplace(folder), SMALL, sources, lambda p: steps.append(p.step))
    assert steps == list(range(step + 1, SMALL.steps + 1))
    assert digest(folder) == digest(whole)


def test_state_is_saved_as_time_goes_by(
    tmp_path: Path, corpus_file: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves behind is the last save."""
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)

    def cut(progress: Progress) -> None:
        if progress.step == 4:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        build(tmp_path / "model", corpus_file, report=cut)
    steps: list[int] = []
    sources = Sources([str(corpus_file)], [], "text")
    build_text_base(Workplace(tmp_path / "model"), SMALL, sources, lambda p: steps.append(p.step))
    assert steps == [4, 5, 6]
    assert digest(tmp_path / "model") == digest(whole)


def test_second_ctrl_c_is_not_waited_for(tmp_path: Path, corpus_file: Path) -> None:
    def insist(_: Progress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stop:
        build(tmp_path / "model", corpus_file, report=insist)
    assert stop.type is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_clinical_training_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    recipe = replace(
        BaseRecipe(), notes=200, hospitals=2, steps=3, hidden_size=32, intermediate_size=48, layers=1, heads=1
    )

    def interrupt(progress: Progress) -> None:
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    losses = build_base(begun(tmp_path / "whole", recipe), recipe)
    assert set(losses) == {f"{what}_{name}" for what in ("validation_loss", "bits_per_byte") for name in NAMES}
    for name in NAMES:  # the tokenizer has a few bytes a token
        assert 0.5 < losses[f"validation_loss_{name}"] / (math.log(2) * losses[f"bits_per_byte_{name}"]) < 20
    with pytest.raises(Stopped):
        build_base(begun(tmp_path / "stopped", recipe), recipe, interrupt)
    assert build_base(Workplace(tmp_path / "stopped"), recipe) == losses
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


# ---- precision


@pytest.fixture
def lessons(tmp_path: Path, corpus_file: Path) -> Callable[[str], TextLessons]:
    """Return a function that makes the lessons of an untrained model in a precision."""
    with pytest.raises(Stopped):
        build(tmp_path / "model", corpus_file, report=lambda _: signal.raise_signal(signal.SIGINT))
    corpus = load_tokens(tmp_path / "model" / "training")

    def make(precision: str) -> TextLessons:
        recipe = replace(SMALL, precision=precision)
        model = new_model(recipe, len(corpus.tokenizer), corpus.tokenizer)
        return TextLessons(corpus, recipe, model, new_reader(recipe))

    return make


def test_bfloat16_spares_attention_and_losses(lessons: Callable[[str], TextLessons]) -> None:
    seen: dict[str, set[torch.dtype]] = {"cells": set(), "mlp": set()}
    rounded = lessons("bfloat16")
    for cells in gain_cell_layers(rounded.model):
        cells.register_forward_pre_hook(lambda _, args: seen["cells"].update(x.dtype for x in args[:3]))
    rounded.model.lm_head.register_forward_hook(lambda _, __, out: seen["mlp"].add(out.dtype))
    losses = rounded(0)
    assert seen == {"cells": {torch.float32}, "mlp": {torch.bfloat16}}
    assert losses.tokens.dtype == torch.float32 and losses.summary is not None
    (losses.tokens.mean() + losses.summary).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in rounded.model.parameters())
    exact = lessons("float32")(0)
    assert not torch.equal(exact.tokens, losses.tokens)
    torch.testing.assert_close(losses.tokens.mean(), exact.tokens.mean(), rtol=5e-3, atol=0)


def test_bfloat16_training_ends_in_a_model(tmp_path: Path, corpus_file: Path) -> None:
    made = build(tmp_path / "model", corpus_file, replace(SMALL, precision="bfloat16", passages=0))
    assert all(math.isfinite(value) for value in made["bits_per_byte"].values())
    assert made["passages"] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_ends_in_a_model(tmp_path: Path, corpus_file: Path) -> None:
    recipe = replace(SMALL, precision="bfloat16")
    sources = Sources([str(corpus_file)], [], "text", "cuda")
    made = build_text_base(begun(tmp_path / "model", recipe), recipe, sources)
    assert made["trained_on"] == "cuda"
    assert all(math.isfinite(value) for value in made["bits_per_byte"].values())
    assert load_model(tmp_path / "model", load_device("gaincell_28nm"), 1e-5, []).scalers
