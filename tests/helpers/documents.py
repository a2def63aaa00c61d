"""Write small PDF and DOCX files for tests."""

from __future__ import annotations

from pathlib import Path


def write_pdf(path: Path, pages: list[str], password: str | None = None) -> Path:
    """Write a page for each text; "" is a page without text, as a scan has.

    A password of "" is a PDF that anybody opens, but that must be decrypted.
    """
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    named = {NameObject(k): NameObject(v) for k, v in font.items()}
    fonts = DictionaryObject({NameObject("/F1"): DictionaryObject(named)})
    for text in pages:
        page = writer.add_blank_page(300, 200)
        if text:
            stream = DecodedStreamObject()
            stream.set_data(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode())
            page[NameObject("/Resources")] = DictionaryObject(
                {NameObject("/Font"): fonts}
            )
            page[NameObject("/Contents")] = writer._add_object(stream)
    if password is not None:
        writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    writer.write(path)
    return path


def write_docx(path: Path, first: str, table: list[list[str]], last: str) -> None:
    """Write a paragraph, a table and a paragraph."""
    import docx

    document = docx.Document()
    document.add_paragraph(first)
    grid = document.add_table(len(table), len(table[0]))
    for row, texts in zip(grid.rows, table, strict=True):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text
    document.add_paragraph(last)
    document.save(str(path))
