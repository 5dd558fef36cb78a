"""Optimizers, parameter groups, schedules, averages."""
