"""Settings of other trainers as a job of ours: what maps, what maps otherwise, what has no counterpart. Nothing is dropped unsaid."""
