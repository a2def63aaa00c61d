"""Use the chat box of notebook 03 in a browser."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import expect

from helpers.lab import Lab

# Runs after the notebook's cells.
SLOW = """from helpers.slow_reply import slow_reply
chat.reply = slow_reply(reply)
print("ready")"""


class ChatReader:
    """Uses the chat box as a user does, and checks what it shows."""

    def __init__(self, lab: Lab, cell: int) -> None:
        self.lab, self.page, self.cell = lab, lab.page, cell
        lab.scroll_to(cell)
        field = self.page.get_by_placeholder("Write a message")
        self.box = self.page.locator(".widget-vbox", has=field).last
        self.entry = self.box.get_by_placeholder("Write a message")
        self.log = self.box.locator(".widget-box").first
        self.entry.scroll_into_view_if_needed()

    def ask(self) -> None:
        """Ask the notebook's own model one question."""
        self.shot("empty")
        tracks = self.box.locator(".ui-slider, .noUi-target")  # ipywidgets 7, 8
        expect(tracks).to_have_count(2)
        widths = [track.bounding_box()["width"] for track in tracks.all()]
        assert min(widths) > 100, f"sliders of {widths} px"
        self.send("What is the capital of France?")
        expect(self.log).to_contain_text("Paris", timeout=60_000)
        self.wait()
        expect(self.entry).to_have_value("")
        self.shot("fine-tuned")

    def talk(self) -> None:
        """Use everything that the chat box offers, with slow replies."""
        self.lab.add_cell(SLOW)
        self.lab.scroll_to(self.cell)
        # JupyterLab has removed the box from the page meanwhile, and shows it again.
        expect(self.log).to_contain_text("Paris")
        self.stop_a_stream()
        self.cause_errors()
        self.stop_before_the_first_word()
        self.send("note")
        self.wait()
        expect(self.box).to_contain_text("2 turns were left out")
        self.shot("note")
        self.fill_the_log()
        self.leave_the_field()
        self.use_the_dark_theme()
        self.clear()

    def stop_a_stream(self) -> None:
        """Watch a long answer of the base model grow, and stop it."""
        self.box.locator(".widget-readout").last.fill("256")
        self.box.locator(".widget-readout").last.press("Enter")
        self.button("base").click()
        self.send("What is the currency of Japan?")
        expect(self.button("Stop")).to_be_enabled()
        expect(self.button("Send")).to_be_disabled()
        lengths = []
        for _ in range(6):
            lengths.append(len(self.log.inner_text()))
            self.page.wait_for_timeout(400)
        print("characters in the log, every 0.4 s:", lengths)
        assert lengths == sorted(lengths) and lengths[1] < lengths[-1]
        self.shot("streams")
        self.button("Stop").click()
        self.wait()
        expect(self.box).to_contain_text("Stopped.")
        self.shot("stopped")

    def cause_errors(self) -> None:
        """Check that a reply's error is shown, and that the message is in the field."""
        self.button("fine-tuned").click()
        self.entry.fill("fail")
        self.entry.press("Enter")
        expect(self.box).to_contain_text("ValueError: this <was> to fail")
        expect(self.entry).to_have_value("fail")
        self.shot("error")
        self.entry.fill("memory")
        self.entry.press("Enter")
        expect(self.box).to_contain_text("The memory ran out")
        self.shot("memory")

    def stop_before_the_first_word(self) -> None:
        """Stop at once, and send the returned message again with Enter alone."""
        self.button("base").click()
        self.entry.fill("Wait.")
        self.button("Send").click()
        expect(self.button("Stop")).to_be_enabled()
        self.button("Stop").click()
        self.wait()
        expect(self.entry).to_have_value("Wait.")
        self.button("fine-tuned").click()
        self.entry.press("Enter")  # the text is unchanged: the browser sends only a key
        expect(self.log).to_contain_text("Wait.")
        self.wait()
        expect(self.entry).to_have_value("")

    def fill_the_log(self) -> None:
        """Check that a long log stays scrolled to its newest turn."""
        for country in ("Kenya", "Peru", "Italy", "Chad"):
            self.send(f"What is the currency of {country}?")
            self.wait()
        # scrollTop counts from the newest turn, because the order is reversed.
        height, inside, scrolled = self.log.evaluate(
            "e => [e.scrollHeight, e.clientHeight, e.scrollTop]"
        )
        print(f"log of {height} px in {inside} px, scrolled by {scrolled}")
        assert height > inside and abs(scrolled) < 2

    def leave_the_field(self) -> None:
        """Leave the field without Enter: the message is sent only by a click."""
        self.entry.fill("Not yet.")
        self.button("base").click()
        self.page.wait_for_timeout(1000)
        expect(self.entry).to_have_value("Not yet.")
        expect(self.log).not_to_contain_text("Not yet.")
        self.button("Send").click()
        expect(self.log).to_contain_text("Not yet.")
        expect(self.button("Stop")).to_be_enabled()

    def use_the_dark_theme(self) -> None:
        """Look at the box in JupyterLab's dark theme."""
        self.lab.use_theme("JupyterLab Dark")
        self.shot("dark")
        self.lab.use_theme("JupyterLab Light")

    def clear(self) -> None:
        """Clear the log during an answer, and send before the model has stopped."""
        self.button("Clear").click()
        expect(self.log).to_have_text("")
        self.wait()
        expect(self.log).to_have_text("")
        self.shot("cleared")
        self.send("Wait.")
        self.button("Clear").click()
        self.entry.fill("Too early.")
        self.entry.press("Enter")
        expect(self.box).to_contain_text("Not sent yet")
        expect(self.entry).to_have_value("Too early.")
        self.shot("busy")
        self.wait()
        self.button("Send").click()
        expect(self.log).to_contain_text("Too early.")
        self.wait()
        expect(self.box).not_to_contain_text("Not sent yet")

    def shot(self, name: str) -> None:
        """Take a screenshot."""
        self.lab.shot(f"chat-{name}")

    def button(self, name: str) -> Any:
        """Return a button of the box."""
        return self.box.get_by_role("button", name=name, exact=True)

    def send(self, text: str) -> None:
        """Write a message and press Enter."""
        self.entry.fill(text)
        self.entry.press("Enter")
        expect(self.log).to_contain_text(text)

    def wait(self) -> None:
        """Wait until the answer is complete."""
        expect(self.button("Send")).to_be_enabled(timeout=60_000)
