"""The long trainings behind the results, in order of worth: benchmarks/queue.yaml, ``make results``.

python -m benchmarks.results_queue                    trains what is missing, one run per core at low priority
python -m benchmarks.results_queue --list             prints what waits, runs and is finished, and each run's JSON
python -m benchmarks.results_queue --only copying-gru --jobs 1
"""
