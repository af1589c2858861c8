"""The adapters that connect the engine in `ppo_unified` to Gymnasium and to language models, and their presets."""
