"""Does a training sweep have the arms that its flags describe, and is what is wrong with one told before any runs?"""

import itertools
import math

import pytest
import running

from model import errors
from train import overrides, recipe, trials

LEARNING_RATE, BATCH, STEPS = "optimizer.learning_rate", "train.batch_size", "train.steps"


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return running.config(tmp_path_factory.mktemp("none"))


def flags(**values):
    """`--config` flags: `train__steps="3,5"` is `--config.train.steps=3,5`."""
    return [f"--config.{name.replace('__', '.')}={text}" for name, text in values.items()]


def rows(made, *paths):
    """What each arm's recipe has at the paths."""
    whole = [recipe.resolved(arm.recipe) for arm in made.arms]
    return [tuple(one[path] for path in paths) for one in whole]


def refused(message):
    return pytest.raises(errors.BadInput, match=message)


def test_a_product_has_every_combination_once_and_the_last_key_moves_fastest(groups):
    given = flags(optimizer__learning_rate="1e-3,3e-3", runtime__dropout="0,0.1,0.3")
    made = trials.arms(groups, given)
    expected = list(itertools.product((1e-3, 3e-3), (0, 0.1, 0.3)))
    assert rows(made, LEARNING_RATE, "runtime.dropout") == expected
    assert [arm.setting for arm in made.arms] == expected
    assert made.arms[1].name == "optimizer.learning_rate=0.001, runtime.dropout=0.1"
    assert made.axes == {LEARNING_RATE: (1e-3, 3e-3), "runtime.dropout": (0, 0.1, 0.3)}


def test_commas_in_brackets_and_quotes_are_part_of_a_value(groups):
    given = flags(decode__prompts="['the moon, a', \"b\"]", optimizer__warmup_steps="3,5")
    made = trials.arms(groups, given)
    assert [arm.recipe.decode.prompts for arm in made.arms] == [("the moon, a", "b")] * 2
    assert trials._values("x", "'a,b',[1,2],\"c\"") == ["a,b", [1, 2], "c"]


def test_zipped_keys_move_together(groups):
    given = flags(train__batch_size="6,12", train__steps="14,7")
    made = trials.arms(groups, given, way="zip")
    assert rows(made, BATCH, STEPS) == [(6, 14), (12, 7)]
    assert {arm.tokens for arm in made.arms} == {6 * 14 * 29}


def test_in_a_chain_one_key_moves_and_the_rest_is_as_in_the_config_which_is_there_once(groups):
    given = flags(optimizer__warmup_steps="5,7", runtime__dropout="0.1,0.2,0.3", train__keep=3)
    made = trials.arms(groups, given, way="chain")  # the config has 5 and 0.2
    assert rows(made, "optimizer.warmup_steps", "runtime.dropout") == [
        (5, 0.2),
        (7, 0.2),
        (5, 0.1),
        (5, 0.3),
    ]
    assert [arm.setting for arm in made.arms] == [(5, 0.2), (7, 0.2), (5, 0.1), (5, 0.3)]
    assert {arm.recipe.train.keep for arm in made.arms} == {3}


def test_draws_are_functions_of_their_seed_and_number_and_lie_in_their_range(groups):
    given = flags(optimizer__learning_rate="log:1e-4:1e-1", runtime__dropout="uniform:0.1:0.2")
    draw = {
        n: [arm.setting for arm in trials.arms(groups, given, way="random", draws=n).arms]
        for n in (7, 211)
    }
    assert draw[211][:7] == draw[7]
    other = trials.arms(groups, given, way="random", draws=7, sweep_seed=1)
    assert not set(draw[7]) & {arm.setting for arm in other.arms}
    rates, drops = zip(*draw[211], strict=True)
    assert all(1e-4 <= rate <= 1e-1 for rate in rates) and all(0.1 <= x <= 0.2 for x in drops)
    # A third of the draws in each decade, a half in each half: 4 standard deviations of a binomial are allowed.
    for low in (1e-4, 1e-3, 1e-2):
        share = sum(low <= rate < 10 * low for rate in rates)
        assert abs(share - 211 / 3) < 4 * math.sqrt(211 * 2 / 9)
    assert abs(sum(x < 0.15 for x in drops) - 211 / 2) < 4 * math.sqrt(211 / 4)
    assert all(float(f"{x:.4g}") == x for x in (*rates, *drops))


def test_draws_from_lists_never_come_twice(groups):
    given = flags(optimizer__warmup_steps="2,3,5", runtime__dropout="0,0.1")
    made = trials.arms(groups, given, way="random", draws=6)
    assert {arm.setting for arm in made.arms} == set(itertools.product((2, 3, 5), (0, 0.1)))
    with refused("--random=7 asks for more than the 6 combinations that there are; lower it"):
        trials.arms(groups, given, way="random", draws=7)


def test_one_seed_of_every_setting_comes_first_and_settings_have_one_arm_per_seed(groups):
    made = trials.arms(
        groups, flags(optimizer__warmup_steps="2,3"), seeds="3"
    )  # from the config's 5
    found = rows(made, "seed", "optimizer.warmup_steps")
    assert found == [(5, 2), (5, 3), (6, 2), (6, 3), (7, 2), (7, 3)]
    assert {s: [a.recipe.seed for a in arms] for s, arms in made.settings.items()} == {
        (2,): [5, 6, 7],
        (3,): [5, 6, 7],
    }
    assert rows(trials.arms(groups, [], seeds="11,2"), "seed") == [(11,), (2,)]
    by_key = trials.arms(groups, flags(seed="11,2"))
    assert [arm.digest for arm in by_key.arms] == [
        arm.digest for arm in trials.arms(groups, [], seeds="11,2").arms
    ]


def test_shards_are_every_nth_arm_and_together_all_of_them(groups):
    made = trials.arms(groups, flags(optimizer__warmup_steps="2,3,5,7,11"))
    shards = [trials.shard(made, f"{i}/3") for i in range(3)]
    assert [[arm.setting[0] for arm in part] for part in shards] == [[2, 7], [3, 11], [5]]
    for text in ("3/3", "1", "a/2", "-1/2"):
        with refused(rf"^--shard={text} is not i/n with i from 0 to n - 1; write --shard=0/4"):
            trials.shard(made, text)


def test_a_digest_is_of_what_is_computed_however_it_was_written(groups):
    def digest(*given):
        return recipe.digest(recipe.from_config(overrides.apply(groups, given)))

    same = digest()
    assert len(same) == 12
    assert digest("--config.seed=5", "--config.optimizer.warmup_steps=5") == same
    assert digest("--config.train.keep=7", "--config.decode.seed=3") == same  # may change
    assert digest("--config.runtime.mesh={'data': 1}") == same
    others = {digest(f"--config.{text}") for text in ("seed=6", "train.steps=62", "data.length=31")}
    assert len(others | {same}) == 4


BAD = {
    "arm 2 (optimizer.learning_rate=-1): optimizer.learning_rate is -1.0; it must be above 0": dict(
        optimizer__learning_rate="1e-3,-1"
    ),
    "arm 1 (optimizer.learning_rat=1): config.optimizer has no key 'learning_rat' (did you mean": dict(
        optimizer__learning_rat="1,2"
    ),
    "arm 2 (optimizer.warmup_steps=5) computes the same as optimizer.warmup_steps=5; remove one of them": dict(
        optimizer__warmup_steps="5,5"
    ),
    "arm 2 (train.keep=3) computes the same as train.keep=2; remove one of them": dict(
        train__keep="2,3"
    ),
    "the sweep has 1 arms, and needs 2; give a key several values, such as --config.optimizer.learning_rate": dict(
        train__steps="7"
    ),
    "--config.train.steps=3,,5 has an empty value; write values with commas between them": dict(
        train__steps="3,,5"
    ),
    "--config.runtime.dropout is a range, which only a random sweep draws from; add --random=N, or list": dict(
        runtime__dropout="uniform:0:0.1"
    ),
    "--config.runtime.dropout=log:0:0.1: a log range goes from a number above 0 and below the other one": dict(
        runtime__dropout="log:0:0.1"
    ),
    "--config.runtime.dropout=uniform:b:0.1: a uniform range goes from a number below the other one; write": dict(
        runtime__dropout="uniform:b:0.1"
    ),
    "arms train on different numbers of tokens, from 10,614 (train.batch_size=6) to 21,228 (train.batch_size=12); "
    "give train.steps values too and add --zip, or add --allow_unequal_tokens": dict(
        train__batch_size="6,12"
    ),
}


@pytest.mark.parametrize("message", BAD, ids=lambda text: text[:30])
def test_what_is_wrong_with_an_arm_is_told_in_one_line_that_names_it(groups, message):
    with pytest.raises(errors.BadInput) as told:
        trials.arms(groups, flags(**BAD[message]))
    assert str(told.value).startswith(message) and "\n" not in str(told.value)


def test_ways_and_seeds_that_contradict_themselves_are_refused(groups):
    with refused("have different numbers of values: config.train.steps 2, config.train.keep 3$"):
        trials.arms(groups, flags(train__steps="3,5", train__keep="1,2,3"), way="zip")
    assert [trials.way(), trials.way(zip=True, random=False)] == ["product", "zip"]
    with refused("^--zip and --random contradict each other; leave one out$"):
        trials.way(zip=True, chain=False, random=True)
    with refused("^--random=0; it must be at least 1$"):
        trials.arms(groups, flags(optimizer__warmup_steps="3,5"), way="random", draws=0)
    with refused(r"^--config.seed=\[1, 2\] stands beside --seeds=3; leave one of them out$"):
        trials.arms(groups, flags(seed="1,2"), seeds="3")
    for text in ("0", "x", "2,-1", "1.5"):
        with refused(f"^--seeds={text} is neither a number of seeds nor a list of them; write"):
            trials.arms(groups, [], seeds=text)


def test_unequal_budgets_are_compared_when_that_is_asked_for(groups):
    made = trials.arms(groups, flags(train__batch_size="6,12"), unequal=True)
    assert [arm.tokens for arm in made.arms] == [61 * 6 * 29, 61 * 12 * 29]
