"""Masked language modelling: what is hidden of which text, the loss of plain transformers, and what is left in the
end."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from featurecache.errors import UsageError
from featurecache.inputs import TextInput
from featurecache.sources.synthetic import SyntheticTexts
from featurecache.teachers.random_projection import byte_tokenizer_json
from featurecache.types import NO_LABEL
from student.data import CachedData
from student.masked_lm import MaskedLanguageModel, MaskedTexts, masked_objective
from student.models.build import build_backbone
from student.settings import TrainSettings
from student.tokenizer import train_tokenizer
from student.trainer import evaluate_objective, train
from tests.small_caches import Texts

WORDS = ("river", "metal", "fruit", "cloud", "horse", "music", "glass", "stone")


@pytest.fixture(scope="module")
def source():
    return SyntheticTexts(96)


@pytest.fixture(scope="module")
def text_input(source):
    text = train_tokenizer((sample.encoded.decode() for sample in source.iter(0, 96)), size=160)
    return TextInput(text, max_length=14)  # some texts are longer


@pytest.fixture(scope="module")
def data(source, text_input):
    return plain(source, text_input)


def plain(source, text_input, samples=None):
    chosen = np.arange(len(source)) if samples is None else samples
    return CachedData(source, text_input, samples=chosen, labels=np.full(chosen.size, NO_LABEL))


def make_model(text_input, *, size="1x16", seed=0):
    torch.manual_seed(seed)
    return MaskedLanguageModel(build_backbone(f"bert:{size}", text_input))


def shown(texts, batches):
    """What each text of some batches has become, by key: {(ids, positions to guess)}, without padding."""
    found = {}
    for batch in batches:
        chosen = batch.inputs["chosen"]
        for row, key in enumerate(texts.keys_of(batch.rows)):
            real = int(batch.inputs["mask"][row].sum())
            assert not chosen[row, real:].any()
            found[key] = (batch.inputs["ids"][row, :real].tolist(), chosen[row].nonzero().ravel().tolist())
    return found


def epoch(texts, number, *, batch_size=16, seed=0, **options):
    per_epoch = texts.steps_per_epoch(batch_size)
    given = {"seed": seed, "start": (number - 1) * per_epoch, "stop": number * per_epoch, **options}
    return shown(texts, texts.shuffled(batch_size, **given))


def test_only_ordinary_tokens_are_hidden_and_what_stood_there_is_the_target(source, text_input, data):
    tokenizer = text_input.tokenizer
    encoded = {sample.key: tokenizer.encode(sample.encoded.decode()) for sample in source.iter(0, 96)}
    texts = MaskedTexts(data, seed=3)
    for batch in texts.shuffled(16, seed=0, start=0, stop=12):
        targets = []
        for key, (ids, positions) in shown(texts, [batch]).items():
            before, special = encoded[key].ids, encoded[key].special_tokens_mask
            assert len(ids) == len(before) <= 14
            assert len(positions) == max(1, round(0.15 * (len(before) - 2)))
            assert not any(special[at] for at in positions)
            assert all(ids[at] == before[at] for at in range(len(ids)) if at not in positions)
            targets += [before[at] for at in positions]
        assert batch.targets["vocabulary"].tolist() == targets


def test_eighty_ten_ten(source, text_input, data):
    before = shown_before(source, text_input)
    texts, counts, ordinary = MaskedTexts(data, seed=0), np.zeros(3), 0
    for number in range(1, 25):
        for key, (ids, positions) in epoch(texts, number).items():
            ordinary += len(ids) - 2
            for at in positions:
                is_masked = text_input.tokenizer.id_to_token(ids[at]) == "[MASK]"
                counts[0 if is_masked else 1 if ids[at] != before[key][at] else 2] += 1
    total, same = (
        counts.sum(),
        0.1 / (text_input.vocabulary_size - 5),
    )  # the random token may be the one that stood there
    expected = np.array([0.8, 0.1 - same, 0.1 + same])
    assert (np.abs(counts / total - expected) < 4 * np.sqrt(expected * (1 - expected) / total)).all()
    assert total > 4000 and 0.13 < total / ordinary < 0.17


def shown_before(source, text_input):
    return {sample.key: text_input.prepare(sample.encoded.decode()) for sample in source.iter(0, len(source))}


def test_what_is_hidden_depends_on_seed_key_and_epoch_alone(source, text_input, data):
    texts = MaskedTexts(data, seed=0)
    first = epoch(texts, 1)
    assert len(first) == 96
    assert epoch(texts, 1, batch_size=12, seed=9) == first  # other batches in another order
    turned = Texts({sample.key: sample.encoded.decode() for sample in reversed(list(source.iter(0, 96)))})
    assert epoch(MaskedTexts(plain(turned, text_input), seed=0), 1) == first
    few = MaskedTexts(plain(source, text_input, np.arange(0, 96, 3)), seed=0)
    assert epoch(few, 1, batch_size=4) == {key: first[key] for key in source.keys[0::3]}
    for other in (epoch(texts, 2), epoch(MaskedTexts(data, seed=1), 1)):
        assert other.keys() == first.keys()
        assert sum(other[key] != first[key] for key in first) > 80


def test_a_step_is_the_same_whenever_training_went_on(data):
    texts = MaskedTexts(data, seed=0)
    whole = list(texts.shuffled(16, seed=4, start=0, stop=15))
    for start in (4, 6, 11):
        rest = list(texts.shuffled(16, seed=4, start=start, stop=15))
        assert len(rest) == 15 - start
        for batch, again in zip(whole[start:], rest, strict=True):
            assert all(torch.equal(batch.inputs[name], again.inputs[name]) for name in batch.inputs)
            assert torch.equal(batch.targets["vocabulary"], again.targets["vocabulary"])


def test_parts_of_a_batch_make_the_whole(data):
    texts = MaskedTexts(data, seed=0)
    halves = [epoch(texts, 2, part=(number, 2)) for number in range(2)]
    assert [len(half) for half in halves] == [48, 48] and halves[0] | halves[1] == epoch(texts, 2)


def test_validation_hides_the_same_every_time(data):
    texts = MaskedTexts(data, seed=0)
    found = shown(texts, texts.in_order(16))
    assert shown(texts, texts.in_order(7)) == found and list(found) == list(data.source.keys)
    parts = [shown(texts, texts.in_order(16, first=number, every=2)) for number in range(2)]
    assert parts[0] | parts[1] == found and not parts[0].keys() & parts[1].keys()
    assert sum(found[key] != value for key, value in epoch(texts, 1).items()) > 80


def test_a_tokenizer_without_a_mask_is_refused(source):
    with pytest.raises(UsageError, match="the tokenizer has no mask token"):
        MaskedTexts(plain(source, TextInput(byte_tokenizer_json())), seed=0)


def test_the_loss_is_that_of_plain_transformers(source, text_input, data):
    model = make_model(text_input, size="2x32").double().eval()
    theirs = BertForMaskedLM(model.network.config).double().eval()
    theirs.load_state_dict(model.network.state_dict())
    before, texts = shown_before(source, text_input), MaskedTexts(data, seed=0)
    batch = next(texts.shuffled(32, seed=0, start=0, stop=1))
    labels = torch.full_like(batch.inputs["ids"], -100)
    for row, key in enumerate(texts.keys_of(batch.rows)):
        chosen = batch.inputs["chosen"][row, : len(before[key])]
        labels[row, : len(before[key])][chosen] = torch.tensor(before[key])[chosen]
    mask = batch.inputs["mask"].long()
    expected = theirs(input_ids=batch.inputs["ids"], attention_mask=mask, labels=labels)
    found = model(batch.inputs)["vocabulary"]
    torch.testing.assert_close(found, expected.logits[labels != -100].float())
    loss, parts = masked_objective()({"vocabulary": found}, batch)
    torch.testing.assert_close(loss, expected.loss.float())
    assert parts.keys() == {"mlm"}


def test_a_batch_with_nothing_to_guess_teaches_nothing(text_input):
    texts = MaskedTexts(plain(Texts({"a": "字", "b": "字 字"}), text_input), seed=0)
    (batch,) = texts.in_order(2)
    model = make_model(text_input)
    loss, _ = masked_objective()(model(batch.inputs), batch)
    loss.backward()
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    assert loss == 0 and gradients and not any(gradient.any() for gradient in gradients)


def test_a_head_is_tied_to_the_embeddings_and_stays_so(data, text_input):
    backbone = build_backbone("bert:1x16", text_input)
    model = MaskedLanguageModel(backbone)
    body = sum(value.numel() for value in backbone.parameters())
    words = text_input.vocabulary_size
    assert sum(value.numel() for value in model.parameters()) == body + 16 * 16 + 16 + 2 * 16 + words
    before = backbone.network.embeddings.word_embeddings.weight.clone()
    settings = TrainSettings(steps=2, batch_size=16, learning_rate=0.01)
    list(train(model, masked_objective(), MaskedTexts(data, seed=0), settings))
    after = backbone.network.embeddings.word_embeddings.weight
    assert not torch.equal(after, before)
    hidden = torch.randn(3, 16)
    torch.testing.assert_close(
        model.network.cls(hidden),
        functional.linear(model.network.cls.predictions.transform(hidden), after, model.network.cls.predictions.bias),
    )


def state(model):
    return list(model.state_dict().values())


def test_a_resumed_run_ends_with_the_same_bits(data, text_input, tmp_path):
    settings = TrainSettings(steps=14, batch_size=16, interval=4, learning_rate=0.01)  # an epoch has 6 steps
    texts = MaskedTexts(data, seed=0)
    whole = make_model(text_input)
    losses = [event.losses for event in train(whole, masked_objective(), texts, settings, validation=texts)]
    loop = train(
        make_model(text_input), masked_objective(), texts, settings, validation=texts, checkpoint=tmp_path / "a"
    )
    for event in loop:
        if event.step == 9:
            loop.close()
    again = make_model(text_input, seed=99)
    torch.manual_seed(123)  # another process
    given = {"validation": texts, "checkpoint": tmp_path / "a", "resume": True}
    rest = [event.losses for event in train(again, masked_objective(), texts, settings, **given)]
    assert all(torch.equal(*pair) for pair in zip(state(again), state(whole), strict=True))
    assert [float(told["mlm"]) for told in rest] == [float(told["mlm"]) for told in losses[-len(rest) :]]


def test_it_learns_what_only_the_other_words_tell():
    texts = {f"key-{number}": " ".join([WORDS[number % 8]] * (4 + number % 3)) for number in range(64)}
    text_input = TextInput(train_tokenizer(texts.values(), size=120), max_length=16)
    data = MaskedTexts(plain(Texts(texts), text_input), seed=0)
    model, objective = make_model(text_input, size="1x32"), masked_objective()
    settings = TrainSettings(steps=150, batch_size=32, learning_rate=0.01)
    assert evaluate_objective(model, objective, data, settings)["mlm"] > math.log(len(WORDS))
    list(train(model, objective, data, settings))
    # every word is as frequent: who does not look at the others is at the entropy, log 8, at best
    assert evaluate_objective(model, objective, data, settings)["mlm"] < math.log(len(WORDS)) / 8


def test_what_is_saved_is_a_folder_of_plain_transformers(data, text_input, tmp_path, capfd):
    model = make_model(text_input, size="2x32")
    list(train(model, masked_objective(), MaskedTexts(data, seed=0), TrainSettings(steps=2, batch_size=16)))
    batch = next(MaskedTexts(data, seed=0).in_order(8))
    with torch.no_grad():
        expected = model.eval()(batch.inputs)["vocabulary"]
    capfd.readouterr()
    model.save(tmp_path / "student")
    assert capfd.readouterr() == ("", "")
    names = {path.name for path in (tmp_path / "student").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "student").eval()
    with torch.no_grad():
        logits = theirs(batch.inputs["ids"], attention_mask=batch.inputs["mask"].long()).logits
    torch.testing.assert_close(logits[batch.inputs["chosen"]], expected)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    sentence = "The hupa [MASK] of kala."
    assert tokenizer(sentence)["input_ids"] == text_input.tokenizer.encode(sentence).ids
    backbone = build_backbone("bert:2x32", text_input, init_from=str(tmp_path / "student"))
    assert all(map(torch.equal, state(backbone.network), state(model.network.bert)))
