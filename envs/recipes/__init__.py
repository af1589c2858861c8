"""How known systems set PPO up: TOML overlays for `train --recipe NAME`."""
