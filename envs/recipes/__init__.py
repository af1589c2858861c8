"""Recipes: TOML files with the PPO options of published systems, for `ppo-unified train --recipe NAME`."""
