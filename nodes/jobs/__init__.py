"""What every host does around a job, whatever the host."""
