"""GRPO whose policy calls tools: prompts -> rollouts of several turns, and what happened in each."""
