"""What `understudy methods` and `understudy detectors` print."""
