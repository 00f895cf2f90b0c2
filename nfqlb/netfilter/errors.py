"""What goes wrong at the kernel's edge, said in one line an operator can act on."""


class KernelError(Exception):
    """The kernel, or a program that speaks to it, refused something.

    `str()` is one line: what was asked, what is wrong, and where it is known what to do about it.
    """
