"""Names and places: shared to a hub and loaded from it by revision, found again offline, refused in a line.

The hub is a server on this machine. The client reads its address once, so that each use of it is a
process of its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from fewstep.data.tokenizer import load_tokenizer, train_tokenizer
from fewstep.models.checkpoint import read_manifest, save_checkpoint
from fewstep.models.config import DenoiserConfig
from fewstep.models.hub import locate, share
from fewstep.models.language_model import Denoiser
from fewstep.sampling.text_model import load
from tests.conftest import randomize
from tests.models.adapters.published_reference import SHAPES, mdlm_config, random_tensors, write_checkpoint
from tests.models.hub_server import Hub, running_hub

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "condition_size": 4,
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


@pytest.fixture
def students(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> list[Path]:
    """Two students of one shape and other weights, for 2 and for 3 steps."""
    for steps in (2, 3):
        model = Denoiser(DenoiserConfig(**SHAPE))
        randomize(model, seed=steps)
        manifest = {"kind": "diffusion", "num_steps": steps, "round_index": 0, "validation_perplexity": 9.5}
        save_checkpoint(tmp_path / f"student_{steps}", model, tokenizer, manifest)
    return [tmp_path / "student_2", tmp_path / "student_3"]


def run(code: str, address: str) -> str:
    """Return what `code` prints in a process whose hub is at `address`; its cache is that of the tests."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_TOKEN": "a-token", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shared_and_loaded_by_revision(hub: Hub, students: list[Path]) -> None:
    """Shared and fetched from the server; then loaded here, where the hub is offline."""
    first, second = map(str, students)
    printed = run(
        f"""if True:
        import fewstep
        from fewstep.models.hub import locate
        print(fewstep.share({first!r}, "me/student"))
        print(fewstep.share({second!r}, "me/student", revision="three-steps"))
        locate("me/student")
        locate("me/student", revision="three-steps")
        for name in ("me/student@gone", "me/nothing"):
            try:
                locate(name)
            except ValueError as error:
                print(error)
        """,
        hub.address,
    )
    address, _, no_revision, no_repository = printed.splitlines()
    assert address.startswith(f"{hub.address}/me/student/commit/")
    assert "'me/student' at revision 'gone'" in no_revision and "'me/nothing'" in no_repository
    files = hub.commits[hub.branches["me/student"]["main"]]
    assert set(files) == {path.name for path in students[0].iterdir()}
    for name in ("model.safetensors", "manifest.json", "README.md"):
        assert files[name] == (students[0] / name).read_bytes()
    assert b"validation perplexity | 9.5" in files["README.md"]

    hub.asked.clear()
    texts = {}
    for name, revision, local in (
        ("me/student", None, first),
        ("me/student", "three-steps", second),
        ("me/student@three-steps", None, second),
    ):
        found, expected = load(name, revision=revision, device="cpu"), load(local, device="cpu")
        assert found.manifest == expected.manifest and found.default_steps == (2 if local is first else 3)
        texts[local] = found.generate(seed=1).tokens
        assert texts[local] == expected.generate(seed=1).tokens
    assert texts[first] != texts[second]
    with pytest.raises(ValueError, match=r"\A[^\n]*'me/never-fetched'[^\n]*HF_HUB_OFFLINE[^\n]*\Z"):
        load("me/never-fetched")
    assert hub.asked == []


def test_tokenizer_and_manifest_are_of_the_revision(hub: Hub, tmp_path: Path) -> None:
    """And neither needs the weights to be fetched."""
    for branch, sentence in (("main", "a rose is a rose"), ("other", "to be or not to be")):
        train_tokenizer([sentence] * 9, vocab_size=260).save_pretrained(tmp_path / branch)
        files = {path.name: path.read_bytes() for path in (tmp_path / branch).iterdir()}
        hub.commit("me/words", branch, {**files, "model.safetensors": b"large"})
        hub.commit("me/words", branch, {"manifest.json": json.dumps({"of": branch}).encode()})
    code = "from fewstep.models.hub import *; [locate('me/words', revision=r, files=TOKENIZER_FILES)"
    run(f"{code} for r in ('main', 'other')]", hub.address)
    assert "tokenizer.json" in hub.asked and "model.safetensors" not in hub.asked
    for branch in ("main", "other"):
        expected = load_tokenizer(tmp_path / branch).get_vocab()
        assert load_tokenizer("me/words", revision=branch).get_vocab() == expected
        assert read_manifest("me/words", revision=branch) == {"of": branch}
    assert load_tokenizer("me/words").get_vocab() != load_tokenizer("me/words@other").get_vocab()


def test_a_published_checkpoint_comes_from_the_hub(
    hub: Hub, tmp_path: Path, tokenizer_directory: Path
) -> None:
    """It has no manifest and, as MDLM's, no tokenizer; its pickled weights come if there are no others."""
    shape = SHAPES[2]
    directory = write_checkpoint(tmp_path, random_tensors(shape), mdlm_config(shape))
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    hub.commit("me/mdlm", "main", {**files, "pytorch_model.bin": b"unwanted"})
    torch.save(load_file(directory / "model.safetensors"), tmp_path / "weights")
    pickled = {"config.json": files["config.json"], "pytorch_model.bin": (tmp_path / "weights").read_bytes()}
    hub.commit("me/mdlm", "pickled", pickled)
    code = (
        "from fewstep.models.hub import locate; [locate('me/mdlm', revision=r) for r in ('main', 'pickled')]"
    )
    run(code, hub.address)
    assert hub.asked.count("pytorch_model.bin") == 2  # HEAD and GET of the second
    expected = load(directory, tokenizer=tokenizer_directory, device="cpu").generate(seed=2).tokens
    for name in ("me/mdlm", "me/mdlm@pickled"):
        found = load(name, tokenizer=tokenizer_directory, device="cpu")
        assert found.manifest == {} and found.generate(seed=2).tokens == expected


def test_a_hub_that_cannot_be_reached_is_named_soon() -> None:
    code = """if True:
        import time, fewstep.models.hub as hub
        start = time.perf_counter()
        for call in (lambda: hub.locate("me/unreached"), lambda: hub.share("sotu-student", "me/student")):
            try:
                call()
            except ValueError as error:
                print(str(error))
        print(time.perf_counter() - start)
    """
    located, shared, seconds = run(code, "http://127.0.0.1:9").splitlines()
    assert "'me/unreached'" in located and "refused" in located.lower()
    assert "cannot share sotu-student as 'me/student'" in shared
    assert float(seconds) < 10


def test_offline_nothing_is_shared(students: list[Path]) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"\Acannot share [^\n]*offline[^\n]*\Z"):
        share(str(students[0]), "me/student")
    assert time.perf_counter() - start < 5


def test_what_is_no_checkpoint_is_not_shared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no config"):
        share(str(tmp_path), "me/student")


@pytest.mark.parametrize(
    ("name", "revision", "part"),
    [
        ("/no/such/place", None, "no such file or directory"),
        ("a b", None, "no such file or directory"),
        ("me/student@one", "two", "give one"),
        ("sotu-student", "main", "has no revision 'main'"),
    ],
)
def test_names_that_cannot_be_are_refused(name: str, revision: str | None, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        locate(name, revision=revision)


def test_a_directory_wins_over_a_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate("sotu-student").parent.name == "assets"
    monkeypatch.chdir(tmp_path)
    Path("sotu-student").mkdir()
    Path("me@home").mkdir()
    assert locate("sotu-student") == Path("sotu-student")
    assert locate("me@home") == Path("me@home")
