// Search in the text of a run.

const MOST = 2000; // matches that are marked

export class Search {
  constructor(text, marks, count) {
    Object.assign(this, { text, marks, count, found: [], place: -1, asked: "" });
  }

  clear() {
    this.found = [];
    this.place = -1;
    this.count.textContent = "";
    this.marks.set("found", []);
    this.marks.set("current", []);
  }

  // Finds a text; returns whether the question is a new one.
  find(asked) {
    this.clear();
    this.asked = asked;
    if (!asked) return;
    const pattern = new RegExp(asked.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"), "giu");
    let more = false;
    for (const match of this.text.whole.matchAll(pattern)) {
      if (this.found.length === MOST) {
        more = true;
        break;
      }
      this.found.push([match.index, match.index + match[0].length]);
    }
    this.more = more;
    this.marks.set("found", this.found.flatMap(([start, end]) => this.text.ranges(start, end)));
    this.count.textContent = this.found.length ? `${this.found.length}${more ? "+" : ""} found` : "nothing found";
  }

  step(by) {
    if (!this.found.length) return;
    this.place = (this.place + by + this.found.length + (this.place < 0 && by < 0 ? 1 : 0)) % this.found.length;
    const [start, end] = this.found[this.place];
    this.marks.set("current", this.text.ranges(start, end));
    this.count.textContent = `${this.place + 1} of ${this.found.length}${this.more ? "+" : ""}`;
    this.text.reveal(start);
  }
}
