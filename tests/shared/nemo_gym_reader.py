"""NeMo-Gym's own code reads configs: ``python nemo_gym_reader.py SOURCE CONFIG...``.

A program of its own, for an interpreter that has the imports of NeMo-Gym. It merges the files of
``config_paths``, follows copies and checks that every server that is named is there; it prints one
JSON object: the blocks of each config, by its path.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

INSIDE_NEMO_RL = ("is_trajectory_collection", "rollout_max_attempts_to_avoid_lp_nan")
"""Keys that NeMo-RL takes out before NeMo-Gym sees them."""
FROM_NEMO_RL = {
    "policy_model_name": "policy",
    "policy_api_key": "none",
    "policy_base_url": ["http://policy/v1"],
    "ray_head_node_address": "head:1",
    "head_server": {"host": "0.0.0.0", "port": 1},
}


def main(source: str, paths: list[str]) -> dict[str, list[str]]:
    """The top-level blocks of each config, as NeMo-Gym understands it."""
    sys.path.insert(0, source)
    os.chdir(source)  # where it looks for the files of config_paths
    from nemo_gym.global_config import GlobalConfigDictParser, GlobalConfigDictParserConfig
    from omegaconf import DictConfig, OmegaConf

    blocks = {}
    for path in paths:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)["env"]["nemo_gym"]
        kept = {key: value for key, value in values.items() if key not in INSIDE_NEMO_RL}
        parsed = GlobalConfigDictParser().parse(
            GlobalConfigDictParserConfig(
                dotenv_path=Path("/nowhere/env.yaml"),
                initial_global_config_dict=DictConfig(kept | FROM_NEMO_RL),
                skip_load_from_cli=True,
            )
        )
        blocks[path] = [str(name) for name in parsed]
    return blocks


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
