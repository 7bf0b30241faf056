"""The engines that look for faults: semgrep, bandit, and our own checks."""
