"""Small text files: what cannot be read is one line that names the file."""

import pytest

from vla_rl.errors import UserError
from vla_rl.files import read_json, read_json_lines, read_text, read_yaml

MARK = b"\xef\xbb\xbf"  # byte order mark


def test_what_is_there(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(MARK + '{"a": "\u00e9"}\n'.encode())
    assert read_text(file) == '{"a": "\u00e9"}\n'
    assert read_json(file) == {"a": "\u00e9"}
    assert read_yaml(file) == {"a": "\u00e9"}
    file.write_bytes(b'{"a": 1}\n{"a": 2}\n')
    assert read_json_lines(file) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("read", [read_json, read_json_lines, read_yaml])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is not text in UTF-8"),
        (b'{"a": ', "is not valid"),
        (b"null", "must hold an object, got NoneType"),
        (b"[1]", "must hold an object, got list"),
        (b"3", "must hold an object, got int"),
    ],
)
def test_one_line_names_the_file(read, content, message, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=rf"^{tmp_path}/file {message}"):
        read(tmp_path / "file")


@pytest.mark.parametrize("read", [read_text, read_json, read_json_lines, read_yaml])
def test_a_folder_in_place_of_a_file(read, tmp_path):
    with pytest.raises(UserError, match=rf"^{tmp_path} cannot be opened \(Is a directory\): download or copy"):
        read(tmp_path)


@pytest.mark.parametrize("read", [read_json, read_json_lines])
def test_a_number_of_too_many_digits(read, tmp_path):
    (tmp_path / "file").write_text("9" * 5000)
    with pytest.raises(UserError, match=r"file is not valid JSON \(Exceeds the limit"):
        read(tmp_path / "file")


@pytest.mark.parametrize("content", ["a: 2024-13-45", f"a: {'9' * 5000}", "!!bool x", "!!int ''", "!!timestamp x", "["])
def test_yaml_that_raises_errors_of_any_class(content, tmp_path):
    (tmp_path / "file").write_text(content)
    with pytest.raises(UserError, match=rf"^{tmp_path}/file is not valid YAML \(.*\): copy it again$") as raised:
        read_yaml(tmp_path / "file")
    assert "\n" not in str(raised.value)


# YAML looks for a key in the rest of the line, which takes seconds in a long one
@pytest.mark.parametrize(("read", "level"), [(read_json, b"["), (read_json_lines, b"["), (read_yaml, b"[\n")])
def test_what_is_nested_too_deeply_is_not_valid(read, level, tmp_path):
    (tmp_path / "file").write_bytes(level * 100_000)
    with pytest.raises(UserError, match=rf"^{tmp_path}/file is not valid"):
        read(tmp_path / "file")
