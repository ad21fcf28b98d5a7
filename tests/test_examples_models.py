"""The float models of the examples give the published answers; their data is complete.

These need the installed assets; without them they are skipped, and say so.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import assets, labels, photos, similarity_data
from examples.models import efficientnet_lite, minilm, squeezenet

pytestmark = pytest.mark.assets

needs_demo = pytest.mark.skipif(
    not assets.is_installed("demo"), reason="run `make assets`: weights are missing"
)
needs_full = pytest.mark.skipif(not assets.is_installed("full"), reason="run `make assets`: data are missing")

LABELS = [243, 559, 438, 990, 949, 853, 609, 609, 915, 455, 541, 630, 741, 471, 129, 99, 251, 22, 317, 305]
# Answers of independent float32 implementations on the same photos and crops.
ANSWERS = {
    efficientnet_lite: {6: 436, 7: 511},
    squeezenet: {6: 436, 7: 511, 11: 837, 16: 275, 19: 302},
}
TOP5_RIGHT = {efficientnet_lite: 19, squeezenet: 17}
NLL = {efficientnet_lite: 0.6279, squeezenet: 1.0472}
PARAMETERS = {efficientnet_lite: 4_652_008, squeezenet: 1_235_496}
NETWORKS = pytest.mark.parametrize("network", ANSWERS, ids=["lite0", "squeezenet"])


@pytest.fixture(scope="module")
def logits():
    """Float logits of the 20 photos, computed once for each network."""
    known = {}

    def compute(network):
        if network not in known:
            module, variables = network.load()
            x = np.stack([network.preprocess(photo.image) for photo in photos.labelled()])
            known[network] = np.asarray(jax.jit(module.apply)(variables, x))
        return known[network]

    return compute


@needs_demo
def test_labelled_photos_are_the_twenty_with_their_classes():
    assert [photo.label for photo in photos.labelled()] == LABELS
    assert {photo.image.mode for photo in photos.labelled()} == {"RGB"}


@needs_demo
@NETWORKS
def test_first_answers_are_the_known_ones(network, logits):
    expected = [ANSWERS[network].get(index, label) for index, label in enumerate(LABELS)]
    assert logits(network).argmax(1).tolist() == expected


@needs_demo
@NETWORKS
def test_top_five_and_likelihood_are_the_known_ones(network, logits):
    found = logits(network)
    best = np.argsort(-found, axis=1)[:, :5]
    assert (best == np.array(LABELS)[:, None]).any(axis=1).sum() == TOP5_RIGHT[network]
    nll = -jax.nn.log_softmax(found)[np.arange(20), np.array(LABELS)].mean()
    assert float(nll) == pytest.approx(
        NLL[network], abs=5e-4
    )  # float sums are ordered as each processor wants


@needs_demo
@NETWORKS
def test_parameter_count_is_the_published_one(network):
    _, variables = network.load()
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[network]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@needs_demo
def test_squeezenet_wants_blue_first(logits):
    module, variables = squeezenet.load()
    rgb = np.stack([photos.square(photo.image) for photo in photos.labelled()]).astype(np.float32)
    swapped = jax.jit(module.apply)(variables, rgb - squeezenet.BGR_MEAN[::-1])
    right = [int((np.asarray(each).argmax(1) == LABELS).sum()) for each in (logits(squeezenet), swapped)]
    assert right == [15, 9]


@needs_demo
def test_class_names_are_in_the_usual_order():
    names = labels.names()
    assert len(names) == 1000
    assert [names[index] for index in (1, 22, 967, 985)] == ["goldfish", "bald eagle", "espresso", "daisy"]


@needs_full
def test_calibration_photos_are_sixteen_others():
    shown = photos.calibration()
    assert len(shown) == 16
    assert not {photo.name for photo in shown} & {photo.name for photo in photos.labelled()}


@needs_full
def test_lite0_sees_what_the_calibration_photos_show():
    module, variables = efficientnet_lite.load()
    shown = {photo.name: photo for photo in photos.calibration()}
    chosen = ["chelsea.png", "coffee.png", "rocket.jpg", "flower.jpg"]
    x = np.stack([efficientnet_lite.preprocess(shown[name].image) for name in chosen])
    assert np.asarray(jax.jit(module.apply)(variables, x)).argmax(1).tolist() == [282, 967, 657, 985]


@needs_demo
def test_minilm_gives_the_published_cosines():
    module, variables = minilm.load()
    texts = [
        "That is a happy person",
        "That is a happy dog",
        "That is a very happy person",
        "Today is a sunny day",
    ]
    vectors = np.asarray(jax.jit(module.apply)(variables, *minilm.preprocess(texts)))
    # Published by sentence-transformers; float32 sums of 384 products may differ in the last of these digits.
    np.testing.assert_allclose(vectors[1:] @ vectors[0], [0.69457746, 0.94291496, 0.25687605], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@needs_demo
def test_minilm_ignores_padding():
    module, variables = minilm.load()
    ids, mask = minilm.preprocess(["A short text."])
    longer = [np.pad(each, ((0, 0), (0, 24))) for each in (ids, mask)]
    short, padded = (module.apply(variables, *tokens) for tokens in ((ids, mask), longer))
    # Masked scores leave softmax as exact zeros; only the order of the sums differs.
    np.testing.assert_allclose(short, padded, atol=1e-6)


@needs_full
def test_minilm_follows_human_judgement_of_words():
    data = similarity_data.wordsim353()
    assert (len(data.texts), len(data.scores)) == (437, 353)
    module, variables = minilm.load()
    vectors = np.asarray(jax.jit(module.apply)(variables, *minilm.preprocess(data.texts)))
    assert round(similarity_data.spearman(data.cosines(vectors), data.scores), 4) == 0.7289


@needs_full
def test_news_texts_are_fifty_with_all_their_pairs():
    data = similarity_data.lee()
    assert (len(data.texts), len(data.scores), len(similarity_data.lee_background())) == (50, 1225, 300)
    assert 0 <= data.scores.min() < data.scores.max() <= 1
    ids, mask = minilm.preprocess(data.texts)
    assert ids.shape[1] == 160  # the longest has 154 ids
    assert mask.sum(axis=1).max() == 154


@needs_demo
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Embeddings", ["em", "##bed", "##ding", "##s"]),
        ("Caf\u00e9, \u00dcber-cool!", ["cafe", ",", "uber", "-", "cool", "!"]),
        ("a\u200bb\tc \u4e2d\u56fd", ["ab", "c", "\u4e2d", "\u56fd"]),
        ("$5^2", ["$", "5", "^", "2"]),
        ("x" * 101, ["[UNK]"]),
        ("", []),
    ],
)
def test_tokenizer_splits_as_bert_does(text, pieces):
    vocabulary = assets.path(minilm.FOLDER, "vocab.txt").read_text(encoding="utf-8").split("\n")
    (ids,), (mask,) = minilm.preprocess([text])
    assert [vocabulary[index] for index in ids[mask]] == ["[CLS]", *pieces, "[SEP]"]


@needs_demo
def test_tokenizer_cuts_long_texts_and_keeps_the_end_mark():
    ids, mask = minilm.preprocess(["word " * 400])
    assert ids.shape == (1, 256)
    assert mask.all()
    assert ids[0, -1] == 102
