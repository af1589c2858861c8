"""Gymnasium environments as rollouts."""
