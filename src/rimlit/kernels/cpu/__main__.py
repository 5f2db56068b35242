"""``python -m rimlit.kernels.cpu`` builds the C++ time loop, or says why it cannot be built."""

from rimlit.kernels.cpu.build import main

if __name__ == "__main__":
    main()
