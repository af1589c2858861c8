"""Adapters: the worlds that the engine in `ppo_unified` can train on, with their policies and presets."""
