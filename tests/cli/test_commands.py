"""The commands from end to end, on networks of a few hundred weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from refold.sources.networks import build

pytestmark = pytest.mark.slow

Net = Callable[[str], str]
SMALL = ("--input-size", "3x9x9")


def words(net: Net, name: str, *more: str | Path) -> list[str | Path]:
    return [net(name), *SMALL, *more]


@pytest.fixture
def checkpoint(net: Net, tmp_path: Path) -> Path:
    """Weights as training leaves them: no norm is what it was."""
    model = build(net("branchy")).model
    generator = torch.Generator().manual_seed(1)
    state = {
        key: torch.rand(value.shape, generator=generator) + 0.5
        if value.is_floating_point()
        else value
        for key, value in model.state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_inspect_shows_every_fold_and_refusal(run: Callable, net: Net) -> None:
    result = run("inspect", *words(net, "branchy"))
    assert result.code == 0, result.err
    assert "3" in result.out
    refused = run("inspect", *words(net, "refused"))
    assert refused.code == 0
    assert "pad" in refused.out


def test_inspect_explains_what_is_kept(run: Callable, net: Net) -> None:
    told = run("inspect", *words(net, "refused", "--why")).out
    assert "A shift meets zero padding" in told
    assert "Put the norm after the convolution" in told
    assert "Put the norm" not in run("inspect", *words(net, "refused", "--why", "--json")).out


def test_inspect_lists_what_does_not_run(run: Callable, net: Net) -> None:
    words_of = words(net, "with_head")
    rows = [line for line in run("inspect", *words_of).out.splitlines() if "aux" in line]
    assert len(rows) == 1
    assert "not run" in rows[0]
    assert "dropped" in run("inspect", *words_of, "--drop-unused").out
    assert json.loads(run("inspect", *words_of, "--json").out)["unrun"] == ["aux"]


def test_convert_leaves_out_what_does_not_run_on_request(
    run: Callable, net: Net, tmp_path: Path
) -> None:
    kept, dropped = tmp_path / "kept.safetensors", tmp_path / "dropped.safetensors"
    said = run("convert", *words(net, "with_head", "-o", kept))
    assert "no recorded call runs aux (--drop-unused leaves it out)" in said.out
    said = run("convert", *words(net, "with_head", "--drop-unused", "-o", dropped))
    assert (said.code, "left out, as no recorded call runs it: aux" in said.out) == (0, True)
    first, second = load_file(kept), load_file(dropped)
    assert first.keys() - second.keys() == {"aux.weight", "aux.bias"}
    assert all(torch.equal(first[key], second[key]) for key in second)


def test_inspect_prints_json_alone(run: Callable, net: Net) -> None:
    plan = json.loads(run("inspect", *words(net, "branchy", "--json")).out)
    assert plan["steps"]


def test_inspect_shows_where_the_convolutions_beside_a_linear_layer_went(
    run: Callable, net: Net
) -> None:
    """RepMLP: three into FC3 with their norms, the norm of the averages into FC1."""
    branches = ("repconv1", "repconv1x3", "repconv3")
    wanted = {
        "mlp.reparam_conv": {"fc3", "fc3_bn"}
        | {f"{name}.{role}" for name in branches for role in ("conv", "bn")},
        "mlp.fc1_fc2.fc1": {"avg.bn", "fc1"},
    }
    result = run("inspect", *words(net, "perceptrons", "--json"))
    assert result.code == 0, result.err
    plan = json.loads(result.out)
    parts = {step["where"]: step["detail"].split(" + ") for step in plan["steps"]}
    found = {where: {name.removeprefix("mlp.") for name in names} for where, names in parts.items()}
    assert found == wanted
    assert plan["kept"] == []
    text = run("inspect", *words(net, "perceptrons")).out
    assert all(name in text for names in wanted.values() for name in names)


def test_a_refusal_fails_ci_on_request(run: Callable, net: Net) -> None:
    assert run("inspect", *words(net, "refused", "--fail-on-refusal")).code == 1
    assert run("inspect", *words(net, "branchy", "--fail-on-refusal")).code == 0
    costlier = run("inspect", *words(net, "costlier", "--fail-on-refusal"))
    assert costlier.code == 0
    assert "costlier" in costlier.out
    grown = run("inspect", *words(net, "costlier", "--allow-growth"))
    assert "costlier" not in grown.out


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2", ".safetensors"])
def test_what_was_converted_verifies(
    run: Callable, net: Net, tmp_path: Path, checkpoint: Path, suffix: str
) -> None:
    out = tmp_path / f"net{suffix}"
    done = run("convert", *words(net, "branchy", "--checkpoint", checkpoint, "-o", out))
    assert done.code == 0, done.err
    norms = next(line for line in done.out.splitlines() if "norms" in line)
    assert norms.split()[-2:] == ["4", "0"]
    assert "equal: largest error" in done.out
    assert "proves little" not in done.err
    same = run("verify", *words(net, "branchy", "--checkpoint", checkpoint), out)
    assert (same.code, same.err.count("refold:")) == (0, 0), same.err
    other = run("verify", *words(net, "branchy", "--live-statistics"), out)
    assert other.code == 1
    assert "not equal" in other.out


def test_convert_prints_json_alone(run: Callable, net: Net, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    done = run("convert", *words(net, "branchy", "--json", "--live-statistics", "-o", out))
    outcome = json.loads(done.out)
    assert outcome["before"]["norms"] == 4
    assert outcome["after"] == outcome["after"] | {"layers": 2, "norms": 0}
    assert outcome["proof"]["exact"]["max_rel_error"] < 1e-9
    assert outcome["kept"] == []


def test_a_proof_that_could_not_fail_is_called_so(run: Callable, net: Net, tmp_path: Path) -> None:
    done = run("convert", *words(net, "branchy", "-o", tmp_path / "net.safetensors"))
    assert done.code == 0
    assert "proves little" in done.err


def test_an_exported_program_converts(run: Callable, net: Net, tmp_path: Path) -> None:
    first, second = tmp_path / "first.pt2", tmp_path / "second.pt2"
    model = build(net("branchy")).model
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, 9, 9),)), first)
    done = run("convert", first, "--live-statistics", "-o", second)
    assert done.code == 0, done.err
    assert second.is_file()


def test_bench_compares_before_and_after(run: Callable, net: Net) -> None:
    result = run("bench", *words(net, "branchy"))
    assert result.code == 0, result.err
    assert "before" in result.out
    assert "after" in result.out
    record = json.loads(run("bench", *words(net, "branchy", "--json")).out)
    assert {row["model"] for row in record["rows"]} == {"before", "after"}


def test_bench_sweeps_batches_and_sizes_and_draws_them(
    run: Callable, net: Net, tmp_path: Path
) -> None:
    more = ("--batch", "1,3", "--size", "8,16", "--rounds", "2", "--input-size", "3x8x8")
    result = run("bench", net("branchy"), *more, "--plot", tmp_path / "a.svg", "--json")
    assert result.code == 0, result.err
    shapes = [table["shapes"] for table in json.loads(result.out)]
    assert shapes == [[[b, 3, s, s]] for s in (8, 16) for b in (1, 3)]
    assert (tmp_path / "a.svg").is_file()
    for words_, said in (
        (("--batch", "1,x"), "--batch '1,x' is not a list of whole numbers"),
        (("--batch", "0"), "is not a list of whole numbers"),
        (("--plot", tmp_path / "a.txt"), "end it in one of .svg .png .pdf"),
        (("--device", "nowhere"), "--device nowhere cannot be used"),
    ):
        result = run("bench", net("branchy"), *words_)
        assert (result.code, said in result.err) == (2, True), result.err


def test_bench_times_what_peers_make_of_it(run: Callable, net: Net) -> None:
    more = ("--input-size", "3x8x8", "--rounds", "2", "--peers", "--json")
    result = run("bench", net("branchy"), *more)
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
    assert [row["model"] for row in rows] == ["before", "after", "timm + fx.fuse"]
    result = run("bench", "acnet_cifar_quick", "--rounds", "1", "--peers", "--json")
    names = [row["model"] for row in json.loads(result.out)["rows"]]
    assert {"before", "after", "timm", "plain"} <= set(names)


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("not_finite", [], "holds NaN or infinity"),
        ("broken", [], "could not be called"),
        ("branchy", ["--checkpoint", "junk.pt"], "junk.pt"),
        ("branchy", ["--checkpoint", "foreign.pt"], "foreign.pt"),
        ("branchy", ["--checkpoint", "code.pt"], "code.pt"),
        ("branchy", ["--input-size", "4x9x9"], "--input-size"),
        ("branchy", ["-o", "a/folder.onnx"], "is a folder"),
    ],
)
def test_a_failure_leaves_no_file(
    run: Callable,
    net: Net,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    more: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("junk.pt").write_bytes(b"PK junk")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "foreign.pt")
    torch.save({"model": WouldRun()}, "code.pt")
    Path("a/folder.onnx").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    result = run("convert", net(name), *SMALL, "-o", "net.onnx", *more)
    assert result.code == 2
    assert said in result.err
    assert result.out == ""
    assert not Path("ran").exists()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder that nobody can write to")
def test_an_unwritable_place_is_found_before_the_work(run: Callable, net: Net) -> None:
    result = run("convert", net("not_finite"), "-o", "/proc/net.onnx")  # which would fail later
    assert result.code == 2
    assert "/proc is not writable" in result.err


class WouldRun:
    """Pickles to a call that leaves a trace where it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2", ".safetensors"])
def test_junk_cannot_be_verified(run: Callable, net: Net, tmp_path: Path, suffix: str) -> None:
    junk = tmp_path / f"junk{suffix}"
    junk.write_bytes(b"junk")
    result = run("verify", *words(net, "branchy"), junk)
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("refold: ")


def test_no_difference_survives_an_unverified_export(
    run: Callable, net: Net, tmp_path: Path, checkpoint: Path
) -> None:
    """A file of which one weight was changed is not equal."""
    from safetensors.torch import load_file, save_file

    out = tmp_path / "net.safetensors"
    assert run("convert", *words(net, "branchy", "--checkpoint", checkpoint, "-o", out)).code == 0
    state = load_file(out)
    state[next(iter(state))].view(-1)[0] += 0.01
    save_file(state, out)
    assert run("verify", *words(net, "branchy", "--checkpoint", checkpoint), out).code == 1
