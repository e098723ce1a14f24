from polyloom.core.errors import MissingExtra, PolyloomError, Stopped, UserError, closest


def test_message_is_one_line_of_what_where_and_next():
    error = UserError("is empty.", where="a.txt", hint="Add text.")
    assert str(error) == "a.txt: is empty. Add text."


def test_exit_codes():
    codes = [cls.exit_code for cls in (PolyloomError, UserError, MissingExtra, Stopped)]
    assert codes == [1, 2, 2, 75]


def test_missing_extra_names_its_install_command():
    assert 'pip install "polyloom[lab]"' in str(MissingExtra("scikit-learn", extra="lab"))


def test_closest_suggests_the_near_word_else_lists_all():
    assert closest("sede", ["seed", "profile"]) == "Did you mean 'seed'?"
    assert closest("zzz", ["b", "a"]) == "Choose one of: a, b."
    assert closest("zzz", []) == ""
