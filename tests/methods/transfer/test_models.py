"""The adaptor on real architectures, sequences against the tree oracles, losses, saving and loading."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from polyloom.core.errors import UserError
from polyloom.data.records import Example, Sentence
from polyloom.methods.transfer.adaptor import SyntaxAdaptor, find_attention, word_embeddings
from polyloom.methods.transfer.method import piece_heads, sequence_heads, tree_distances
from polyloom.methods.transfer.models import (
    Syntax,
    TransferModel,
    WordEncoder,
    load_transfer,
    predict,
    save_transfer,
    task_loss,
)
from polyloom.methods.transfer.sequences import (
    IGNORED,
    NUM_DEPRELS,
    NUM_UPOS,
    Layout,
    Sequencer,
    Targets,
    TokenizerPieces,
    WordPieces,
    find_targets,
    gold_heads,
)
from polyloom.methods.transfer.training import add_lora, agreement, merge_lora

SMALL = {
    "vocab_size": 60,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}
MODERN = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
DISTIL = {"vocab_size": 60, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 80}
FAMILIES = {
    "Bert": SMALL,
    "XLMRoberta": SMALL,
    "DistilBert": DISTIL,
    "Roberta": SMALL,
    "Electra": SMALL | {"embedding_size": 24},
    "DebertaV2": SMALL | DEBERTA,
    "ModernBert": SMALL | MODERN,
    "MPNet": SMALL,
    "Albert": SMALL | {"embedding_size": 24},
    "Llama": SMALL | {"num_key_value_heads": 2},
    "Qwen3": SMALL | {"num_key_value_heads": 2, "head_dim": 12},
}
TARGETS = Targets(("no", "yes"), ("O", "B-x", "I-x"))


def build(family: str, **changes: object) -> PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family] | changes)
    torch.manual_seed(0)
    return getattr(transformers, f"{family}Model")(config).eval()


def random_batch(rows: int = 2, size: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    distances = torch.randint(1, 5, (rows, size, size))
    tags = torch.randint(1, NUM_UPOS, (rows, size))
    return {
        "input_ids": torch.randint(5, 60, (rows, size)),
        "attention_mask": torch.ones(rows, size, dtype=torch.long),
        "distances": (distances + distances.transpose(1, 2)) // 2 * (1 - torch.eye(size, dtype=torch.long)),
        "upos": tags,
        "deprel": tags,
    }


def states(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state


@pytest.mark.parametrize("family", FAMILIES)
def test_off_is_the_plain_model_bit_for_bit_and_on_is_not(family: str):
    model, batch = build(family), random_batch()
    plain = states(model, batch)
    adaptor = SyntaxAdaptor(model, num_layers=2, num_upos=NUM_UPOS).eval()
    assert torch.equal(states(model, batch), plain)
    adaptor.prepare(word_embeddings(model)(batch["input_ids"]), batch)
    assert not torch.allclose(states(model, batch), plain, atol=1e-4)
    adaptor.clear()
    assert torch.equal(states(model, batch), plain)
    adaptor.prepare(word_embeddings(model)(batch["input_ids"]), batch)
    adaptor.remove()
    assert torch.equal(states(model, batch), plain)


@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "DistilBert", "DebertaV2", "ModernBert"])
def test_zero_fusion_is_the_plain_model(family: str):
    model, batch = build(family), random_batch()
    plain = states(model, batch)
    adaptor = SyntaxAdaptor(model, num_layers=1, zero=True).eval()
    adaptor.prepare(word_embeddings(model)(batch["input_ids"]), batch)
    assert torch.equal(states(model, batch), plain)


def test_the_hooks_add_what_the_fusion_gives_to_keys_and_values():
    model, batch = build("Bert"), random_batch()
    adaptor = SyntaxAdaptor(model, num_layers=1, num_upos=NUM_UPOS, num_slices=2).eval()
    seen: dict[str, torch.Tensor] = {}
    first = find_attention(model)[0]
    for name, module in (("key", first.key), ("value", first.value), ("query", first.parent.query)):
        module.register_forward_hook(lambda m, a, out, name=name: seen.__setitem__(name, out))
    states(model, batch)
    plain = dict(seen)
    g = adaptor.prepare(word_embeddings(model)(batch["input_ids"]), batch)
    states(model, batch)
    key, value = adaptor.fusions["0"](g)
    assert torch.allclose(seen["key"], plain["key"] + key, atol=1e-6)
    assert torch.allclose(seen["value"], plain["value"] + value, atol=1e-6)
    assert torch.equal(seen["query"], plain["query"])


def test_positions_of_deberta_are_left_alone():
    """Its key projection also serves relative positions, whose shape can be that of a batch of one."""
    model = build("DebertaV2", position_buckets=4, max_relative_positions=4, share_att_key=True)
    span = find_attention(model)[0].parent.pos_ebd_size
    batch = random_batch(1, 2 * span)
    adaptor = SyntaxAdaptor(model, num_layers=1).eval()
    calls: list[bool] = []
    plain: list[torch.Tensor] = []
    key = find_attention(model)[0].key
    key.register_forward_pre_hook(lambda m, a: plain.append(m.weight.new_tensor(0) + (a[0] @ m.weight.T + m.bias)))
    key.register_forward_hook(lambda m, a, out: calls.append(torch.allclose(out, plain[-1], atol=1e-5)))
    adaptor.prepare(word_embeddings(model)(batch["input_ids"]), batch)
    states(model, batch)
    assert calls == [False, True]


def test_chosen_layers_and_first_heads():
    model = build("Bert")
    adaptor = SyntaxAdaptor(model, layers=[1], fuse="first", num_slices=3)
    assert list(adaptor.fusions) == ["1"]


def test_the_parameter_counts_of_base_size():
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig())
        for num_slices, expected in ((1, 839_424), (2, 1_234_176)):
            adaptor = SyntaxAdaptor(model, num_upos=NUM_UPOS, num_slices=num_slices)
            assert sum(parameter.numel() for parameter in adaptor.parameters()) == expected
    assert (NUM_UPOS, NUM_DEPRELS) == (21, 42)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"GPT2Model.*Its matrices are in: .*c_attn"):
        SyntaxAdaptor(transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50300)))
    with pytest.raises(UserError, match="3 syntactic heads do not divide the encoder's 4"):
        SyntaxAdaptor(build("Bert"), num_slices=3, fuse="all")
    with pytest.raises(UserError, match="layers 0 to 1"):
        SyntaxAdaptor(build("Bert"), layers=[2])
    with pytest.raises(UserError, match=r"no keys and values.*embedding, gru"):
        TransferModel(WordEncoder(10, 4, 0.0), TARGETS, syntax=Syntax())


# ---- sequences


class Letters:
    """A word's pieces are its letters."""

    num_positions = None

    def __init__(self, between: int = 1) -> None:
        self.layout = Layout(1, 2, 0, 3, between)

    def __call__(self, word: str) -> tuple[int, ...]:
        return tuple(5 + ord(letter) % 50 for letter in word) or (3,)


def sentence(words: str, heads: list[int], labels: str = "") -> Sentence:
    parts = tuple(words.split())
    return Sentence(parts, ("NOUN",) * len(parts), tuple(heads), ("nmod:poss",) * len(parts), tuple(labels.split()))


FIRST = sentence("my name is wasi", [2, 4, 4, 0], "O B-x I-x O")
SECOND = sentence("a bc", [2, 0])


@pytest.mark.parametrize("between", [1, 2])
@pytest.mark.parametrize("pair", [False, True])
def test_distances_of_sequences_are_those_of_the_piece_trees(between: int, pair: bool):
    sentences = (FIRST, SECOND) if pair else (FIRST,)
    sequencer = Sequencer(Letters(between), 100, TARGETS, gold_heads)
    batch = sequencer.batch([Example("a", sentences, "yes")])
    trees = [piece_heads(one.heads, [len(word) for word in one.words]) for one in sentences]
    heads = sequence_heads(trees, [between, 1] if pair else [1])
    distances, depths = tree_distances(heads)
    assert batch["distances"][0].tolist() == distances.tolist()
    assert batch["depths"][0].tolist() == depths.tolist()
    assert batch["upos"][0, 0] == 18
    assert batch["upos"][0, -1] == 19
    assert batch["words"].tolist() == [[1, 3, 7, 9]]
    assert batch["tags"].tolist() == [[0, 1, 2, 0]]


def test_what_is_cut_keeps_the_distances_of_the_full_tree():
    full = Sequencer(Letters(), 100, TARGETS, gold_heads).batch([Example("a", (FIRST, SECOND), "yes")])
    sequencer = Sequencer(Letters(), 11, TARGETS, gold_heads)
    cut = sequencer.batch([Example("a", (FIRST, SECOND), "yes")])
    # 12 + 3 pieces in room for 8: the first sentence loses 7.
    kept = [0, 1, 2, 3, 4, 5, 13, 14, 15, 16, 17]
    assert sequencer.cut == {"a"}
    assert cut["distances"][0].tolist() == full["distances"][0][kept][:, kept].tolist()
    assert cut["words"].tolist() == [[1, 3, 0, 0]]
    assert cut["tags"].tolist() == [[0, 1, IGNORED, IGNORED]]


def test_an_empty_text_is_one_unknown_piece():
    batch = Sequencer(Letters(), 10, Targets(("no", "yes")), gold_heads).batch([Example("a", (Sentence(()),), "no")])
    assert batch["input_ids"].tolist() == [[1, 3, 2]]
    assert batch["distances"][0].tolist() == [[0, 1, 2], [1, 0, 1], [2, 1, 0]]


def test_labels_of_the_test_that_training_lacks_are_named():
    sequencer = Sequencer(Letters(), 10, TARGETS)
    with pytest.raises(UserError, match="the label 'maybe' is none"):
        sequencer.batch([Example("a", (FIRST,), "maybe")])
    with pytest.raises(UserError, match="the tag 'B-y' of sentence"):
        sequencer.batch([Example("a", (sentence("a", [0], "B-y"),), "yes")])


def test_targets_are_found_and_single_classes_refused():
    examples = [Example("a", (FIRST,), "yes"), Example("b", (FIRST,), "no")]
    assert find_targets(examples, "auto") == Targets(("no", "yes"), ("O", "B-x", "I-x"))
    assert find_targets(examples, "tags").labels == ()
    with pytest.raises(UserError, match="0 classes"):
        find_targets([Example("a", (SECOND,))], "sentence")
    with pytest.raises(UserError, match="0 word tags"):
        find_targets([Example("a", (SECOND,), "yes"), Example("b", (SECOND,), "no")], "tags")


# ---- the whole model


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    names = [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[UNK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstu"),
    ]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


GRAPH = Syntax(num_layers=2)


def whole(syntax: Syntax | None = GRAPH, family: str = "Bert") -> tuple[TransferModel, Sequencer]:
    encoder = build(family)
    pieces = TokenizerPieces(word_piece_tokenizer(), encoder)
    model = TransferModel(encoder, TARGETS, syntax=syntax, dropout=0.1, seed=3).eval()
    return model, Sequencer(pieces, 60, TARGETS, gold_heads if syntax else None)


EXAMPLES = [
    Example("a", (FIRST,), "yes"),
    Example("b", (sentence("is", [0], "B-x"),), "no"),
    Example("c", (sentence("name my wasi is is name", [0, 1, 1, 3, 1, 2], "O O O B-x I-x O"),), "no"),
]


def test_special_tokens_are_those_of_the_tokenizer():
    model, sequencer = whole()
    assert sequencer.pieces.layout == Layout(1, 2, 0, 3, 1, True)
    assert sequencer.pieces("wasi") == (26, 30, 48, 38)
    assert sequencer.batch([Example("p", (FIRST, SECOND), "yes")])["token_type_ids"][0].sum() == 4
    assert model.pooling == "first"


@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "DistilBert", "ModernBert"])
def test_no_sequence_is_longer_than_its_encoder(family: str):
    encoder = build(family, max_position_embeddings=16)
    sequencer = Sequencer(TokenizerPieces(word_piece_tokenizer(), encoder), 4000, TARGETS)
    batch = sequencer.batch([Example("long", (sentence("is " * 30, [0] * 30, "O " * 30),), "no")])
    # RoBERTa's positions begin behind the number of its pad.
    assert batch["input_ids"].shape == (1, 15 if family == "XLMRoberta" else 16)
    assert sequencer.cut == {"long"}
    with torch.no_grad():
        encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


@pytest.mark.parametrize("family", ["Bert", "Llama"])
def test_outputs_do_not_depend_on_batch_mates(family: str):
    model, sequencer = whole(family=family)
    with torch.no_grad():
        together = model(sequencer.batch(EXAMPLES))
        for i, example in enumerate(EXAMPLES):
            alone = model(sequencer.batch([example]))
            size = len(example.sentences[0].words)
            assert torch.allclose(together.label[i], alone.label[0], atol=1e-5)
            assert torch.allclose(together.tags[i, :size], alone.tags[0], atol=1e-5)


def test_words_are_pooled_without_their_pads():
    model = TransferModel(WordEncoder(30, 6, 0.0), TARGETS, seed=1).eval()
    sequencer = Sequencer(WordPieces(["my name", "is"]), 20, TARGETS)
    with torch.no_grad():
        together = model(sequencer.batch(EXAMPLES))
        alone = model(sequencer.batch(EXAMPLES[1:2]))
    assert torch.allclose(together.label[1], alone.label[0], atol=1e-6)


def test_the_loss_is_intent_plus_slots_over_first_pieces():
    model, sequencer = whole(None)
    batch = sequencer.batch(EXAMPLES)
    outputs = model(batch)
    intent = torch.nn.functional.cross_entropy(outputs.label, torch.tensor([1, 0, 0]))
    kept = batch["tags"] != IGNORED
    slots = torch.nn.functional.cross_entropy(outputs.tags[kept], batch["tags"][kept])
    assert kept.sum() == 11
    assert torch.allclose(task_loss(outputs, batch), intent + slots)


def test_texts_agree_with_themselves():
    model, sequencer = whole(None)
    batch = sequencer.batch(EXAMPLES)
    with torch.no_grad():
        first, second = model(batch), model(batch)
    assert agreement(first, second, batch, batch) < 1e-6


def test_saving_and_loading_gives_equal_logits_and_a_small_file(tmp_path: Path):
    model, sequencer = whole()
    save_transfer(model, sequencer, tmp_path / "m", {"arm": "lexsyn"}, word_piece_tokenizer())
    loaded = load_transfer(tmp_path / "m")
    batch = sequencer.batch(EXAMPLES)
    with torch.no_grad():
        before, after = model(batch), loaded.model(loaded.sequencer.batch(EXAMPLES))
    assert torch.equal(before.label, after.label)
    assert torch.equal(before.tags, after.tags)
    assert loaded.about["arm"] == "lexsyn"
    plain = transformers.AutoModel.from_pretrained(tmp_path / "m" / "encoder")
    assert torch.equal(plain.get_input_embeddings().weight, word_embeddings(model.encoder).weight)
    assert not any("encoder." in name for name in torch_names(tmp_path / "m" / "transfer.safetensors"))


def torch_names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


def test_word_models_are_saved_with_their_words(tmp_path: Path):
    model = TransferModel(WordEncoder(7, 6, 0.0), TARGETS, seed=1).eval()
    sequencer = Sequencer(WordPieces(["my", "name", "is"]), 20, TARGETS)
    save_transfer(model, sequencer, tmp_path / "m", {})
    loaded = load_transfer(tmp_path / "m")
    assert predict(loaded.model, loaded.sequencer, EXAMPLES) == predict(model, sequencer, EXAMPLES)


def test_predictions_read_no_labels_and_keep_the_order():
    model, sequencer = whole()
    bare = [Example(e.id, tuple(sentence(" ".join(s.words), list(s.heads)) for s in e.sentences)) for e in EXAMPLES]
    said = predict(model, sequencer, EXAMPLES)
    assert said == predict(model, sequencer, bare, batch_size=1)
    assert [len(tags) for tags in said.tags] == [4, 1, 6]


def test_lora_trains_few_parameters_and_merges_into_the_plain_encoder():
    encoder, batch = build("Bert"), random_batch()
    plain = states(encoder, batch)
    add_lora(encoder, 2)
    assert torch.equal(states(encoder, batch), plain)
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert 0 < trained < 0.2 * sum(p.numel() for p in encoder.parameters())
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adaptor = SyntaxAdaptor(encoder, num_layers=1).eval()
    changed = states(encoder, batch)
    adaptor.prepare(word_embeddings(encoder)(batch["input_ids"]), batch)
    assert not torch.allclose(states(encoder, batch), changed, atol=1e-3)
    adaptor.clear()
    merge_lora(encoder)
    assert torch.allclose(states(encoder, batch), changed, atol=1e-4)
    assert [name for name, _ in encoder.named_parameters()] == [name for name, _ in build("Bert").named_parameters()]


def test_the_graph_learns_and_its_gradients_reach_every_parameter():
    model, sequencer = whole(Syntax(num_layers=2, deprel=True))
    batch = sequencer.batch(EXAMPLES)
    outputs = model(batch)
    (task_loss(outputs, batch) + outputs.structure).backward()
    without = [name for name, p in model.adaptor.named_parameters() if p.grad is None or not p.grad.any()]
    # A constant added to every key changes no attention, so that its bias has no gradient but rounding.
    assert [name for name in without if "key.bias" not in name] == []


def test_arms_of_a_seed_share_encoder_and_heads():
    encoder = build("Bert")
    base = TransferModel(copy.deepcopy(encoder), TARGETS, seed=5)
    syn = TransferModel(copy.deepcopy(encoder), TARGETS, syntax=Syntax(), seed=5)
    ours = dict(syn.named_parameters())
    assert all(torch.equal(value, ours[name]) for name, value in base.named_parameters())
