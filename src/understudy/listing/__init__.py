"""The output of `understudy methods` and `understudy detectors`."""
