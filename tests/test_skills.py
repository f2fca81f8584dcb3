"""Streams of text: skills and its verifiers, tasks from files, gsm8k, the pretraining corpus."""

import json
import re
from collections import Counter
from itertools import permutations, product
from random import Random

import pytest
import torch

from cl.errors import BadValue, ContractError, DataError, UnknownName
from cl.registry import find
from cl.scenarios import apply
from cl.settings import Scenario
from cl.stream import Experience, Stream
from cl.text import Item, TextStream
from cl.verifiers import exact, last_number, marked, marked_number, numeric
from streams._skills import ALPHABET, MAX_ANSWER, MAX_PROMPT, chance, held, well_formed
from streams._skills_corpus import STYLES
from streams._skills_single import CONTROL, SKILLS, facts
from streams._skills_tasks import TASKS
from streams.gsm8k import gsm8k
from streams.jsonl import jsonl
from streams.skills import corpus, skills

ALL = TASKS | SKILLS | {CONTROL.name: CONTROL}
SMALL = {"n_train": 20, "n_val": 5, "n_test": 10}


def drawn(task, n=50, seed=0):
    rng = Random(seed)
    return [task.draw(rng) for _ in range(n)]


def strings(symbols, longest):
    return ("".join(s) for n in range(longest + 1) for s in product(symbols, repeat=n))


def texts(stream, table):
    return [stream.items[i].prompt for i in table.column("x").tolist()]


# what is right, said again without the code of the tasks: {task: (given, symbols, longest, rule)}
def _apart(s):
    """The letters of s where they stand as a word or singly between commas or spaces, else None."""
    ok = re.fullmatch(r"[a-z]([ ,]?[a-z])*", s)
    return s.replace(",", "").replace(" ", "") if ok else None


BY_HAND = {
    "above": (
        {"n": 12},
        "0129.-a ",
        3,
        lambda s: s in {*map(str, range(13, 1000)), *(f"0{k}" for k in range(13, 100))},
    ),
    "letter": ({"word": "bada"}, "badx, ", 5, lambda s: bool(_apart(s)) and "x" not in s),
    "even": (
        {"low": 11, "high": 19},
        "01234568a ",
        3,
        lambda s: s in ("12", "14", "16", "18", "012", "014", "016", "018"),
    ),
    "ascend": (
        {"start": "acv"},
        "vwxz, ",
        5,
        lambda s: _apart(s) in {"w", "x", "z", "wx", "wz", "xz", "wxz"},
    ),
    "mix": (
        {"pool": "abc", "first": "b"},
        "abc, ",
        5,
        lambda s: _apart(s) in {"bac", "bca"},
    ),
    "twice": (
        {"row": "abacbd"},
        "abcd, ",
        4,
        lambda s: bool(_apart(s)) and not set(_apart(s)) & set("cd"),
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_verifiers_agree_with_every_answer_written_out(name):
    given, symbols, longest, rule = BY_HAND[name]
    right = 0
    for text in strings(symbols, longest):
        expected = rule(text.strip())
        assert TASKS[name].reward(text, given) == float(expected), text
        right += expected
    assert right >= 4


@pytest.mark.parametrize("name", TASKS)
def test_every_prompt_has_four_right_answers_or_more(name):
    for given in drawn(TASKS[name], 200):
        if name == "mix":
            answers = map("".join, permutations(given["pool"]))
        elif name == "above":
            answers = map(str, range(10000))
        elif name == "even":
            answers = map(str, range(100))
        else:
            answers = "abcdefghijklmnopqrstuvwxyz"
        assert sum(TASKS[name].reward(a, given) for a in answers) >= 4, given


@pytest.mark.parametrize("name", [*SKILLS, CONTROL.name])
def test_skills_and_the_control_have_one_right_answer(name):
    task = ALL[name]
    for given in drawn(task):
        answer = task.canonical(given)
        assert task.foreign(given) == answer == task.any(given, Random(0))
        assert task.reward(answer, given) == 1.0
        others = [answer + answer[-1], answer[:-1], answer + ".", ",".join(answer) + ","]
        assert all(task.reward(other, given) == 0.0 for other in others)


def test_the_answers_of_the_skills_are_those_of_an_independent_reading_of_the_prompt():
    def box(text):
        content = dict(re.findall(r"([abc])(\d)", text.split(",")[0]))
        one, other = re.search(r"swap (\w) (\w)", text).groups()
        content[one], content[other] = content[other], content[one]
        return content[text[-2]]

    solve = {
        "copy": lambda p: p[5:-1],
        "reverse": lambda p: "".join(reversed(p[8:-1])),
        "sort": lambda p: "".join(sorted(p[5:-1])),
        "add": lambda p: str(eval(p[4:-1]))[::-1],
        "count": lambda p: str(Counter(p.split()[-1][:-1])[p[6]]),
        "max": lambda p: max(re.findall(r"\d+", p), key=int),
        "box": box,
        "fact": lambda p: facts()[tuple(p[:-1].split(" of "))],
        "ends": lambda p: p[8] + p[-2],
    }
    for name, solution in solve.items():
        for given in drawn(ALL[name], 200):
            assert solution(ALL[name].prompt(given)) == given["answer"], name


@pytest.mark.parametrize("name", TASKS)
def test_canonical_and_foreign_answers_are_right_and_differ_in_style(name):
    task = TASKS[name]

    def style(answer):
        return "," in answer or re.match("0+[0-9]", answer) is not None

    same = 0
    for given in drawn(task, 300):
        canonical, foreign = task.canonical(given), task.foreign(given)
        assert task.reward(canonical, given) == task.reward(foreign, given) == 1.0
        assert not style(canonical) and style(foreign)
        same += canonical == foreign.lstrip("0").replace(",", "")
    assert same < 30  # another choice too, most of the time


@pytest.mark.parametrize("name", ALL)
def test_prompts_and_answers_keep_to_alphabet_and_length(name):
    task, rng = ALL[name], Random(1)
    assert len(ALPHABET) == len(set(ALPHABET)) <= 60
    for given in drawn(task, 300):
        answers = [task.canonical(given), task.foreign(given), task.any(given, rng)]
        assert len(task.prompt(given)) <= MAX_PROMPT
        assert all(task.reward(a, given) == 1.0 and len(a) <= MAX_ANSWER for a in answers)
        guess = task.guess(given, rng)
        assert task.well_formed(guess)
        assert set("".join([task.prompt(given), guess, *answers])) <= set(ALPHABET)
        assert tuple(given) == task.given


@pytest.mark.parametrize("name", ALL)
def test_any_text_is_scored_and_format_failures_are_told_apart(name):
    task, given = ALL[name], drawn(ALL[name], 1)[0]
    odd = ["", " ", "\n", "\0", "٣", "²", "Ⅷ", "é", "\ud800", "-5", "1e3", "0" * 10**5, "a" * 10**5]
    odd += ["".join(Random(k).choices(ALPHABET, k=k)) for k in range(40)]
    for text in odd:
        assert task.reward(text, given) in (0.0, 1.0)
        assert task.well_formed(text) or task.reward(text, given) == 0.0
    assert not any(task.well_formed(text) for text in odd[:11])
    for style in STYLES:  # what pretraining shows beside the plain style is a format failure
        assert not well_formed(ALL, name, style.format(task.canonical(given)))
    assert well_formed(ALL, name, f" {task.canonical(given)}\n")


def test_the_verifiers_keep_trls_signature():
    stream = skills(**SMALL)
    verify = stream.verifiers["above"]
    rewards = verify(["above 5:"] * 3, ["6", "5", "six"], n=[5, 5, 5], completion_ids=[[1]] * 3)
    assert rewards == [1.0, 0.0, 0.0]
    wrong = [i for i, item in enumerate(stream.items) if item.task == "copy"][:2]
    assert stream.rewards(wrong, [stream.items[wrong[0]].responses[0], "no"]) == [1.0, 0.0]
    assert stream.is_well_formed(wrong[0], "abc") and not stream.is_well_formed(wrong[0], "12")


def test_chance_is_the_share_of_right_guesses():
    even = TASKS["even"]
    asked = [{"low": 20, "high": 49}] * 40
    assert chance(even, asked) == pytest.approx(15 / 90, abs=0.04)
    mix = TASKS["mix"]
    assert chance(mix, drawn(mix, 60)) == pytest.approx(1 / 5, abs=0.04)
    stream = skills(**SMALL)
    assert all(0 <= ev.chance < 1 for ev in stream.evals)
    assert [ev.chance for ev in stream.evals] == [ev.chance for ev in skills(**SMALL).evals]


def test_the_stream_teaches_tasks_and_scores_skills_beside_them():
    stream = skills(tasks=["mix", "above"], control=True, skills=["copy", "fact"], **SMALL)
    assert isinstance(stream, TextStream) and stream.domain == "llm"
    assert [e.name for e in stream.experiences] == ["00_mix", "01_above", "02_ends"]
    assert [(e.name, e.kind, e.learned_at) for e in stream.evals] == [
        ("00_mix", "stream", (0,)),
        ("01_above", "stream", (1,)),
        ("02_ends", "stream", (2,)),
        ("copy", "held_out", ()),
        ("fact", "held_out", ()),
    ]
    assert [stream.seen_classes(k) for k in range(3)] == [0, 0, 0] and stream.n_classes == 0
    assert [len(e.train) for e in stream.experiences] == [20] * 3
    assert {(len(ev.val), len(ev.test)) for ev in stream.evals} == {(5, 10)}
    for table, task in [(e.train, e.name[3:]) for e in stream.experiences]:
        assert {stream.items[i].task for i in table.column("x").tolist()} == {task}
    assert set(stream.max_new_tokens.values()) == {MAX_ANSWER + 1}


def test_classes_seen_grow_past_experiences_without_any():
    stream = skills(**SMALL)
    with_classes = [
        Experience(k, str(k), classes, stream.experiences[0].train)
        for k, classes in enumerate([(), (0, 1), (), (2,)])
    ]
    plain = Stream("s", "vision", with_classes, [], (), ["a", "b", "c"])
    assert [plain.seen_classes(k) for k in range(4)] == [0, 2, 2, 3]


def test_splits_are_disjoint_and_tests_are_never_trained_on_whatever_the_seed():
    names = list(TASKS)
    trained, tested = set(), set()
    for seed in range(3):
        stream = skills(tasks=names, control=True, seed=seed)
        for e in stream.experiences:
            trained |= (prompts := set(texts(stream, e.train)))
            assert len(prompts) == len(e.train)
        for ev in stream.evals:
            val, test = set(texts(stream, ev.val)), set(texts(stream, ev.test))
            assert not val & test and (len(val), len(test)) == (len(ev.val), len(ev.test))
            if ev.name != "fact":
                tested |= val | test
    assert not trained & tested
    learned = {item.prompt for item in corpus(0, 5000) if item.task != "fact"}
    assert not learned & tested and not any(map(held, learned))
    share = sum(map(held, map(str, range(10000)))) / 10000
    assert share == pytest.approx(0.25, abs=0.02)


def test_the_same_arguments_give_the_same_stream_and_every_argument_changes_it():
    base = skills(**SMALL).content_hash()
    assert skills(**SMALL).content_hash() == base
    for change in (
        {"seed": 1},
        {"tasks": ["above", "letter"]},
        {"tasks": ["letter", "above", "even", "ascend"]},
        {"order": "seeded"},
        {"control": True},
        {"skills": ["copy"]},
        {"demonstrations": "foreign"},
        {"demonstrations": "own"},
        {"n_train": 19},
        {"n_val": 0},
        {"n_test": 9},
    ):
        assert skills(**{**SMALL, **change}).content_hash() != base, change


def test_test_prompts_do_not_depend_on_how_many_others_there_are():
    def tests(**sizes):
        stream = skills(**{**SMALL, **sizes})
        return [texts(stream, ev.test) for ev in stream.evals]

    assert tests() == tests(n_val=0) == tests(n_train=3)
    assert [t[:7] for t in tests()] == tests(n_test=7)


def test_demonstrations_are_the_first_response_and_own_ones_are_left_to_the_objective():
    asked = {"n": 100}
    for kind, expected in {"canonical": "101", "foreign": "000200"}.items():
        stream = skills(tasks=["above"], skills=[], demonstrations=kind, n_train=600)
        assert stream.demonstrations == kind
        response = next(i.responses[0] for i in stream.items if dict(i.meta) == asked)
        assert response == expected
    for kind in ("own", "oracle"):
        stream = skills(demonstrations=kind, **SMALL)
        assert stream.demonstrations == kind
        learned = {k for e in stream.experiences for k in e.train.column("x").tolist()}
        # what stands in where the model has no right answer: the canonical one
        plain = skills(**SMALL).items
        assert all(stream.items[k].responses == plain[k].responses for k in learned)
    assert apply(stream, Scenario(cycles=2), 0).demonstrations == "oracle"


def test_recurring_visits_bring_the_same_prompts_or_parts_of_them():
    stream = skills(tasks=["above", "mix"], **SMALL)
    visits = apply(stream, Scenario(cycles=3, cycle_data="parts"), 0).experiences
    parts = [texts(stream, e.train) for e in visits[::2]]
    assert [len(p) for p in parts] == [7, 7, 6]
    assert sorted(sum(parts, [])) == sorted(texts(stream, stream.experiences[0].train))
    with pytest.raises(DataError, match="parts: task '00_above' has 20 training rows"):
        apply(stream, Scenario(cycles=21, cycle_data="parts"), 0)


def test_a_seeded_order_is_a_permutation_of_the_tasks():
    orders = {
        tuple(e.name[3:] for e in skills(order="seeded", control=True, seed=s, **SMALL).experiences)
        for s in range(6)
    }
    assert len(orders) > 1
    names = {"above", "letter", "even", "ascend", "ends"}
    assert all(set(order) == names and len(order) == 5 for order in orders)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, "stream.tasks is empty"),
        ({"tasks": ["above", "above"]}, "each name once"),
        ({"skills": ["copy", "copy"]}, "each name once"),
        (
            {"n_train": 5000, "tasks": ["above"]},
            r"stream.n_train=5000: task 'above' has about 7\d\d",
        ),
        ({"n_test": 1000, "tasks": ["above"]}, r"n_test \+ stream.n_val=1048: task 'above'"),
        ({"n_test": 190, "tasks": ["mix"]}, "task 'fact' has about 216 test prompts"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(BadValue, match=message) as stop:
        skills(**settings)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    "keys",
    [{"imbalance": 3.0}, {"shift": "noise"}, {"blurry": 0.5}, {"task_labels": True}],
    ids=str,
)
def test_operators_that_go_by_class_are_refused(keys):
    with pytest.raises(BadValue, match="acts on classes, skills has none"):
        apply(skills(**SMALL), Scenario(**keys), 0)


# ------------------------------------------------------------------------------- the corpus


def test_the_corpus_mixes_skills_and_a_sprinkling_in_many_styles():
    items = corpus(0, 20_000)
    assert items == corpus(0, 20_000)[:] and items[:500] != corpus(1, 500)
    assert items[:500] == corpus(0, 500)
    n = Counter(item.task for item in items)
    assert set(n) == set(ALL) and sum(n[t] for t in SKILLS) / len(items) == pytest.approx(
        0.85, abs=0.01
    )
    for item in items:
        task = ALL[item.task]
        assert len(item.prompt) <= MAX_PROMPT and len(item.responses[0]) <= MAX_ANSWER
        assert set(item.prompt + item.responses[0]) <= set(ALPHABET)
        if item.task in SKILLS:
            assert task.reward(item.responses[0], item.meta) == 1.0
    sprinkled = [i for i in items if i.task not in SKILLS]
    plain = [i for i in sprinkled if ALL[i.task].well_formed(i.responses[0])]
    assert len(plain) / len(sprinkled) == pytest.approx(0.06, abs=0.02)
    right = sum(ALL[i.task].reward(i.responses[0], i.meta) for i in plain) / len(plain)
    assert 0.7 < right < 0.9  # 0.7, and guesses that happen to be right
    foreign = [i for i in sprinkled if re.search(r"\b0\d{5}|[a-z],[a-z]", i.responses[0])]
    assert not foreign


def test_the_corpus_can_be_all_skills_or_all_tasks():
    assert {i.task for i in corpus(0, 300, sprinkle=0)} <= set(SKILLS)
    items = corpus(0, 300, sprinkle=1, plain=1, right=1)
    assert {i.task for i in items} == {*TASKS, "ends"}
    assert all(ALL[i.task].reward(i.responses[0], i.meta) == 1.0 for i in items)


# -------------------------------------------------------------------------- tasks from files


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / name).write_text(lines if name.endswith("l") else json.dumps(rows))


def rows(n, start=0):
    return [{"prompt": f"p{k}", "answer": str(k)} for k in range(start, start + n)]


@pytest.fixture
def trace(tmp_path):
    write(tmp_path / "b_second", "train.json", rows(20))
    write(tmp_path / "b_second", "test.json", rows(5, 100))
    write(tmp_path / "b_second", "eval.json", rows(4, 200))
    write(tmp_path / "a_first", "train.jsonl", rows(10))
    write(tmp_path / "a_first", "test.jsonl", rows(3, 100))
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_a_folder_of_tasks_becomes_a_stream_in_alphabetical_order(trace):
    stream = jsonl(path=trace)
    assert [e.name for e in stream.experiences] == ["00_a_first", "01_b_second"]
    assert [(len(e.train), len(e.val)) for e in stream.experiences] == [(9, 1), (20, 4)]
    assert texts(stream, stream.evals[1].test) == [f"p{k}" for k in range(100, 105)]
    assert texts(stream, stream.experiences[1].val) == [f"p{k}" for k in range(200, 204)]
    first = [*texts(stream, stream.experiences[0].train), *texts(stream, stream.experiences[0].val)]
    assert sorted(first) == sorted(f"p{k}" for k in range(10))
    assert stream.rewards([0, 1], [" 0 ", "7"]) == [1.0, 0.0]
    assert stream.content_hash() == jsonl(path=trace).content_hash()
    assert stream.content_hash() != jsonl(path=trace, seed=1).content_hash()


def test_tasks_can_be_chosen_ordered_held_out_and_cut(trace):
    stream = jsonl(path=trace, tasks=["b_second"], held_out=["a_first"], n_train=6, n_test=2, val=0)
    assert [(e.name, len(e.train)) for e in stream.experiences] == [("00_b_second", 6)]
    assert [(e.name, e.kind, len(e.test)) for e in stream.evals] == [
        ("00_b_second", "stream", 2),
        ("a_first", "held_out", 2),
    ]
    assert [e.name for e in jsonl(path=trace, held_out=["a_first"]).experiences] == ["00_b_second"]
    one = jsonl(path=trace / "a_first", val=0)
    assert [e.name for e in one.experiences] == ["00_a_first"] and one.experiences[0].val is None
    with pytest.raises(UnknownName, match="did you mean 'a_first'"):
        jsonl(path=trace, tasks=["a_frist"])
    with pytest.raises(BadValue, match="names 'a_first' twice"):
        jsonl(path=trace, tasks=["a_first"], held_out=["a_first"])
    with pytest.raises(BadValue, match="leave no task"):
        jsonl(path=trace, held_out=["a_first", "b_second"])


def test_numbers_are_compared_as_numbers():
    values = {"1,000": 1000, "-3.50": -3.5, "$18.00": 18, "a 5 then 7.": 7, ".5": 0.5, "none": None}
    assert [last_number(text) for text in values] == list(values.values())
    assert last_number("9" * 6000) == last_number("9" * 6000 + ".0")
    answers = ["1000", "so #### 1,000", "7", "7", "7"]
    said = ["it is $1,000.0.", "1000", "8 7", "7 8", "seven"]
    assert numeric(said, said, answer=answers) == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert marked(said[:2], ["#### 1000", "1000"], answer=["1000", "1000"]) == [1.0, 0.0]
    assert marked_number("#### 3 #### 4") == 3 and marked_number("3 ####") is None
    assert exact(["a", "a"], ["b ", "B"], answer=["b", "b"]) == [1.0, 0.0]


def test_fields_may_have_other_names_and_answers_may_be_numbers(tmp_path):
    own = [{"question": f"{k}+1", "gold": k + 1, "level": k} for k in range(6)]
    write(tmp_path / "t", "train.json", own)
    write(tmp_path / "t", "test.json", own[:2] + [{"question": "q", "gold": 0.5}])
    stream = jsonl(path=tmp_path, prompt="question", answer="gold", verifier="numeric", val=0)
    assert stream.items[0] == Item("0+1", ("1",), "t", {"answer": "1"})  # level is not in every row
    assert stream.rewards([0, 1, 8], ["1.0", "x", "0.50"]) == [1.0, 0.0, 1.0]
    assert stream.is_well_formed(0, "about 3") and not stream.is_well_formed(0, "three")


def test_a_verifier_of_the_users_own_gets_the_rows_columns(trace, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def close(prompts, completions, answer, **columns):\n"
        "    if len(completions) == 1 and completions[0] == 'odd': raise KeyError('odd')\n"
        "    if 'odd' in completions: raise KeyError('odd')\n"
        "    return [1 - min(1, abs(int(c) - int(a))) / 2 for c, a in zip(completions, answer)]\n"
        "def short(prompts, completions, **columns): return [1.0] * 7\n"
        "def large(prompts, completions, **columns): return [2.0] * len(prompts)\n"
        "def absent(prompts, completions, **columns): return [float('nan')] * len(prompts)\n"
        "def broken(prompts, completions): return 1 / 0\n"
    )
    stream = jsonl(path=trace, verifier=f"{file}:close", val=0)
    assert stream.rewards([0, 1, 2], ["0", "5", "2"]) == [1.0, 0.5, 1.0]
    assert stream.rewards([0, 1, 2], ["0", "odd", "3"]) == [1.0, None, 0.5]  # that one alone
    assert stream.failures == 1
    for name, message in {
        "short": "a list of 1 rewards, got 7",
        "large": "rewards 2.0; allowed: 0 to 1",
    }.items():
        with pytest.raises(ContractError, match=message):
            jsonl(path=trace, verifier=f"{file}:{name}", val=0).rewards([0], ["0"])
    assert jsonl(path=trace, verifier=f"{file}:absent", val=0).rewards([0], ["0"]) == [None]
    with pytest.raises(BadValue, match="raises on an answer of task 'a_first': TypeError"):
        jsonl(path=trace, verifier=f"{file}:broken")
    with pytest.raises(BadValue, match="no function 'clos'; did you mean 'close'"):
        jsonl(path=trace, verifier=f"{file}:clos")
    with pytest.raises(DataError, match="no file"):
        jsonl(path=trace, verifier=f"{tmp_path}/none.py:f")
    with pytest.raises(BadValue, match="got 'exat'; did you mean 'exact'"):
        jsonl(path=trace, verifier="exat")
    file.write_text("import nothing_like_this\n")
    with pytest.raises(ContractError, match="mine.py: ModuleNotFoundError"):
        jsonl(path=trace, verifier=f"{file}:close")


BAD_FILES = {
    "no row": ("train.jsonl", "\n\n", r"train.jsonl has no rows"),
    "no rows in a list": ("train.json", "[]", r"train.json has no rows"),
    "bad line": (
        "train.jsonl",
        '{"prompt": "a", "answer": "b"}\n{"prompt',
        r"row 2 is not JSON",
    ),
    "bad list": ("train.json", '[\n{"prompt": 1,}]', r"train.json line 2 is not JSON"),
    "no list": ("train.json", '{"prompt": "a"}', r"must hold a list of rows, it holds an object"),
    "no object": (
        "train.json",
        '[{"prompt": "a", "answer": "b"}, 3]',
        r"row 2 must be",
    ),
    "no answer": (
        "train.jsonl",
        '\n{"prompt": "a", "gold": 1}',
        r"no 'answer'; it has",
    ),
    "null": (
        "train.json",
        '[{"prompt": "a", "answer": null}]',
        r"'answer' must be",
    ),
    "list": (
        "train.json",
        '[{"prompt": ["a"], "answer": "b"}]',
        r"'prompt' must be",
    ),
    "empty": ("train.json", '[{"prompt": "a", "answer": " "}]', r"row 1: 'answer' is empty"),
    "deep": ("train.json", "[" * 10**5, r"train.json"),
    "bytes": ("train.json", b"\xff\xfe", r"is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_what_is_wrong_with_a_file_is_one_line_that_names_file_and_row(case, tmp_path):
    name, content, message = BAD_FILES[case]
    write(tmp_path / "task", "test.json", rows(2))
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / "task" / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as stop:
        jsonl(path=tmp_path)
    assert "\n" not in str(stop.value) and name in str(stop.value)


def test_folders_without_tasks_or_files_are_named(trace, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        jsonl(path=tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="bare holds no task; expected TASK/train.json"):
        jsonl(path=tmp_path / "bare")
    with pytest.raises(DataError, match=r"task folder .*bare holds no train.json or train.jsonl"):
        jsonl(path=trace)
    write(tmp_path / "bare", "train.json", rows(3))
    with pytest.raises(DataError, match=r"bare holds no test.json"):
        jsonl(path=trace)
    write(tmp_path / "bare", "test.json", rows(3))
    write(tmp_path / "bare", "test.jsonl", rows(3))
    with pytest.raises(DataError, match=r"holds test.json and test.jsonl; keep one"):
        jsonl(path=trace)
    (tmp_path / "bare" / "test.jsonl").unlink()
    with pytest.raises(BadValue, match="leaves task 'bare' no training row of its 3"):
        jsonl(path=trace, val=0.9)
    with pytest.raises(DataError, match="row 1: 'answer' holds no number"):
        write(tmp_path / "bare", "train.json", [{"prompt": "a", "answer": "b"}])
        jsonl(path=trace, verifier="numeric")


# ------------------------------------------------------------------------------------ gsm8k


def problems(n):
    text = "It takes 2/2=<<2/2=1>>1 bolt.\n#### 1,{:03d}"
    return [{"question": f"How many, {k}?", "answer": text.format(k)} for k in range(n)]


def test_gsm8k_is_checked_by_its_marked_number(tmp_path):
    write(tmp_path, "gsm8k-train.jsonl", problems(50))
    write(tmp_path, "gsm8k-test.jsonl", problems(10))
    stream = gsm8k(path=tmp_path, n_train=20)
    assert (len(stream.experiences[0].train), len(stream.experiences[0].val)) == (20, 1)
    test = stream.evals[0].test.column("x").tolist()
    assert len(test) == 10 and stream.evals[0].learned_at == (0,)
    item = stream.items[test[2]]
    assert item.responses == ("It takes 2/2=1 bolt.\n#### 1,002",)
    said = ["#### 1002", "1002", "so it is\n#### $1,002.00", "#### 3"]
    assert stream.rewards([test[2]] * 4, said) == [1.0, 0.0, 1.0, 0.0]
    assert [stream.is_well_formed(test[2], s) for s in said] == [True, False, True, True]
    short = gsm8k(path=tmp_path, responses="number", n_test=3, val=0)
    assert short.items[0].responses == ("#### 1,000",) and len(short.evals[0].test) == 3
    assert "<<2/2=1>>" in gsm8k(path=tmp_path, calculator=True).items[0].responses[0]


def test_gsm8k_names_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        gsm8k(path=tmp_path / "none")
    with pytest.raises(DataError, match="holds no gsm8k-train.jsonl"):
        gsm8k(path=tmp_path)
    write(tmp_path, "gsm8k-train.jsonl", [*problems(1), {"question": "q", "answer": "#### none"}])
    with pytest.raises(DataError, match="row 2: 'answer' holds no `#### number`"):
        gsm8k(path=tmp_path)


def test_gsm8k_itself_is_read_whole_and_its_answers_are_right(data_folder):
    if not (data_folder / "gsm8k-train.jsonl").is_file():
        pytest.skip(f"no gsm8k-train.jsonl in {data_folder}")
    stream = gsm8k(path=data_folder, val=0.02)
    sizes = [len(stream.experiences[0].train), len(stream.evals[0].val), len(stream.evals[0].test)]
    assert sum(sizes[:2]) == 7473 and sizes[1:] == [149, 1319]
    gold = [item.responses[0] for item in stream.items]
    assert set(stream.rewards(range(len(gold)), gold)) == {1.0}
    assert not any("<<" in response for response in gold)


# ----------------------------------------------------------------------------- both as plug-ins


def test_text_streams_are_found_by_name_and_described_without_importing_them(capsys):
    from cl.cli import main

    for name in ("skills", "jsonl", "gsm8k"):
        entry = find("streams", name)
        assert all(param.doc for param in entry.params().values())
        with pytest.raises(SystemExit) as stop:
            main(["describe", name])
        assert stop.value.code == 0 and "stream.demonstrations" in capsys.readouterr().out


def test_text_streams_move_to_a_device_as_one_pool():
    stream = skills(**SMALL).to(torch.device("cpu"))
    pools = {id(e.train.columns["x"]) for e in stream.experiences}
    assert len(pools | {id(ev.test.columns["x"]) for ev in stream.evals}) == 1
