"""What a teacher said of samples, as a file has it: a record for each, with its key and a number for each class."""

from featurecache.records.log_probabilities import LEAST, log_probabilities
from featurecache.records.table import Records, read_records

__all__ = ["LEAST", "Records", "log_probabilities", "read_records"]
