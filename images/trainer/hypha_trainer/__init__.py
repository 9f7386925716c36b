"""The DiLoCo trainer: an executor that trains one model through the job bridge."""
