"""Is every config of the package a recipe?"""

import importlib
import pathlib

import pytest

from train import recipe

NAMES = {path.stem for path in pathlib.Path("configs").glob("[!_]*.py")}
PROMPTS = {"gsm8k_prompts", "sst2_prompts"}
STARTING = {"instruct": "fiction", "sst2_pretrained": "masked", "dialogsum_pretrained": "spans"}


@pytest.mark.parametrize("name", sorted(NAMES - {"preset", *STARTING, *PROMPTS}))
def test_a_config_is_a_recipe_and_opens_with_its_command(name):
    module = importlib.import_module(f"configs.{name}")
    recipe.from_config(module.get_config().to_dict())
    assert f"launch.py train --config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", STARTING)
def test_a_config_that_starts_from_a_run_fits_that_run(name, tmp_path):
    """All but the weights: the model is taken from the run's config.json."""
    parent = importlib.import_module(f"configs.{STARTING[name]}").get_config().to_dict()
    asked = recipe.from_config(parent)
    (tmp_path / "config.json").write_text(recipe.to_json(asked, asked.model_config(8000)))
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.start.path == f"runs/{STARTING[name]}"
    config.start.path = str(tmp_path)
    started = recipe.from_config(config.to_dict())
    assert started.model_config(8000).width == asked.model_config(8000).width
