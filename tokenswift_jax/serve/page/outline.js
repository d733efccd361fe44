// The headings of a text: Markdown's, and lines such as "Chapter 3".

const MARKDOWN = /^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*$/u;
const NAMED = /^\s*((?:chapter|part|book|act|scene|section|volume)\s+(?:[\divxlc]+|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b.{0,80}|prologue|epilogue|introduction|conclusion)\s*$/iu;
const LONGEST = 200; // units of a line that can be a heading
const MOST = 2000; // headings shown

export class Outline {
  constructor(list, none, go) {
    Object.assign(this, { list, none, go });
    this.clear();
  }

  clear() {
    this.list.replaceChildren();
    this.none.hidden = false;
    this.line = "";
    this.start = 0; // units before the line
    this.length = 0; // units of it, of which `line` may be a part
    this.count = 0;
  }

  // Reads text that was added at the end.
  *read(text) {
    let from = 0, lines = 0;
    for (let end; (end = text.indexOf("\n", from)) >= 0; from = end + 1, lines += 1) {
      this.keep(text.slice(from, end));
      this.complete();
      if (lines % 256 === 255) yield;
    }
    this.keep(text.slice(from));
  }

  keep(piece) {
    this.length += piece.length;
    if (this.line.length <= LONGEST) this.line += piece.slice(0, LONGEST + 1);
  }

  complete() {
    const line = this.line, start = this.start;
    this.start += this.length + 1;
    this.line = "";
    this.length = 0;
    if (!line || line.length > LONGEST || this.count >= MOST) return;
    const markdown = MARKDOWN.exec(line), named = markdown ? null : NAMED.exec(line);
    const title = markdown?.[2] || named?.[1];
    if (!title) return;
    this.count += 1;
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = title;
    button.className = `l${Math.min(markdown ? markdown[1].length : 1, 4)}`;
    button.addEventListener("click", () => this.go(start));
    item.append(button);
    this.list.append(item);
    this.none.hidden = true;
  }
}
