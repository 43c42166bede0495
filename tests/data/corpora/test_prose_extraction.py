import pytest

from llm.data.corpora.prose_extraction import extract_paragraphs, remove_markup

PAGE = """
The "assert" statement
**********************

Assert statements are a convenient way to insert debugging assertions
into a program:

   assert_stmt ::= "assert" expression ["," expression]

These equivalences assume that "__debug__" and "AssertionError" refer
to the built-in variables with those names. [1] The simple form is this:

   if __debug__:
       if not expression: raise AssertionError

* A list item is prose where it is made of sentences, as
  this one is.
* Return the value of x.
2. The second way is to call :func:`open` with the *mode* that is
   described in `the manual <https://example.org>`_.

+--------+-------------------------------+
| Name   | The meaning of the name in it |
+--------+-------------------------------+

open(file, mode='r')

Args:
    name: The name of the thing that is to be opened.
    mode: The mode in which it is to be opened for you.

>>> this is an example of how to use it in the prompt.

lower case fragments of sentences are not the start of anything that is said here.

alpha, beta, gamma, delta, epsilon, zeta, eta, theta, iota and kappa.
"""


def test_prose_is_kept_and_all_else_left_out():
    assert list(extract_paragraphs(PAGE)) == [
        'These equivalences assume that "__debug__" and "AssertionError" refer to the built-in '
        "variables with those names.",
        "A list item is prose where it is made of sentences, as this one is.",
        'The second way is to call "open" with the mode that is described in the manual.',
    ]


@pytest.mark.parametrize(
    ("marked", "clean"),
    [
        (":class:`~io.StringIO` objects", '"io.StringIO" objects'),
        (":ref:`the page <page>` and ``code``", '"the page" and "code"'),
        ("the `name' and `other`", 'the "name" and "other"'),
        (
            "*stressed* and **more**, not 2 * 3 * 4 or *args",
            "stressed and more, not 2 * 3 * 4 or *args",
        ),
        ("as said before [3]", "as said before"),
        ("like this::", "like this:"),
        ("too   many\tspaces ", "too many spaces"),
    ],
)
def test_markup_is_taken_away(marked: str, clean: str):
    assert remove_markup(marked) == clean


def test_an_abbreviation_ends_no_sentence():
    text = "This is one sentence, and it is whole. This one is cut off by code, e.g."
    assert list(extract_paragraphs(text)) == ["This is one sentence, and it is whole."]
