"""Every registered plug-in keeps the contract; the checks are those of `cl check`."""

from pathlib import Path

import pytest

from cl.check import check
from cl.registry import ROOMS, entries
from cl.strategy import HOOKS, Strategy

NAMES = [(kind, name) for kind in ROOMS for name in entries(kind)]


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=[f"{k}-{n}" for k, n in NAMES])
def test_every_registered_plug_in_keeps_the_contract(kind, name):
    findings = list(check(name))
    failed = [f"{what}: {detail}" for passed, what, detail in findings if not passed]
    assert findings and not failed


def test_the_base_class_documents_every_hook():
    for name in HOOKS:
        assert getattr(Strategy, name).__doc__, name
    assert not any(hasattr(Strategy, claim) for claim in ("objective", "data", "optimizer"))


BAD = {
    "misspelt hook": (
        "def before_bakward(self, loop): pass",
        "no hook of Bad: 'before_bakward'; did you mean",
    ),
    "state": ("def __init__(self): self.f = open", "Bad.f holds a builtin_function_or_method"),
    "unknown need": ("needs = ('boundary',)", "did you mean 'boundaries'"),
    "hidden randomness": (
        "def before_forward(self, loop):\n        import os; loop.mb_x = loop.mb_x + "
        "int.from_bytes(os.urandom(2), 'big') / 65536",
        "same seed, same results",
    ),
    "evaluation that trains": (
        "def before_eval(self, loop):\n        import torch\n        with torch.no_grad():"
        "\n            [p.add_(0.01) for p in loop.model.parameters()]",
        "measuring changes nothing",
    ),
    "prediction by batch": (
        "def predict(self, loop, batch):\n        scores = loop.model(batch.x)\n"
        "        return scores - scores.mean(0)",
        "predictions do not depend on batching",
    ),
    "state outside __init__": (
        "def after_training_exp(self, loop):\n        import __main__\n"
        "        n = __main__.__dict__.setdefault('seen_', [])\n        n.append(1)\n"
        "        loop.model.head.bias.data += 0.1 * len(n)",
        "same seed, same results",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_check_finds_what_breaks_the_contract(case, tmp_path):
    body, expected = BAD[case]
    path = tmp_path / f"bad_{case.replace(' ', '_').replace('__', '')}.py"
    path.write_text(
        f'from cl import Strategy\n\n\nclass Bad(Strategy):\n    """bad."""\n\n    {body}\n'
    )
    findings = list(check(f"{path}:Bad"))
    failed = " ".join(f"{what}: {detail}" for passed, what, detail in findings if not passed)
    assert expected in failed


@pytest.mark.parametrize("name", ["my_stream.py", "my_strategy.py", "my_stream.py:split_wine"])
def test_the_examples_keep_the_contract(name):
    findings = list(check(str(Path(__file__).parents[1] / "examples" / name)))
    assert len(findings) > 5 and all(passed for passed, *_ in findings)
