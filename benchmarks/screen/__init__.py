"""One small model over five small tasks: which rule of competition holds over all of them.

python -m benchmarks.screen               trains what is missing, two runs at a time, and prints the table
python -m benchmarks.screen --show        prints the table of what is there
"""
