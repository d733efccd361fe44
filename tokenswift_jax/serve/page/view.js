// The run on the screen: it reads the events of a run and shows its text, and rejoins where it left off.

import { events } from "/page/api.js";
import { Colours, Marks } from "/page/colours.js";
import { Outline } from "/page/outline.js";
import { Plots } from "/page/plots.js";
import { Search } from "/page/search.js";
import { Slice } from "/page/slices.js";
import { Text } from "/page/text.js";
import { Tokens } from "/page/tokens.js";

const FIRST_WAIT = 500, LONGEST_WAIT = 8000; // milliseconds before a lost stream is joined again
const ENDS = ["finished", "cancelled", "failed"];

export class View {
  // `changed` is called with the newest event after its text is on the page.
  constructor(element, parts, changed) {
    this.changed = changed;
    this.marks = new Marks();
    this.tokens = new Tokens();
    this.text = new Text(element, (block) => this.colours.watch(block));
    this.colours = new Colours(this.marks, this.text, this.tokens, element);
    this.outline = new Outline(parts.outline, parts.noOutline, (unit) => this.text.reveal(unit));
    this.search = new Search(this.text, this.marks, parts.count);
    this.plots = new Plots(parts.plots);
    this.words = parts.words;
    this.follow = true;
    this.loops = [];
    this.reading = null;
    this.drawn = 0;
  }

  open(id) {
    this.close();
    this.id = id;
    this.reset();
    this.join();
  }

  reset() {
    this.after = -1;
    this.loops = [];
    this.colours.clear();
    this.text.clear();
    this.tokens.clear();
    this.outline.clear();
    this.search.clear();
    this.plots.clear();
    this.marks.set("loop", []);
    this.words.textContent = "";
  }

  close() {
    this.reading?.abort();
    this.reading = null;
  }

  // Reads until the run ends or `close`; a stream that breaks is joined again after the last event seen.
  async join() {
    this.close();
    const reading = (this.reading = new AbortController()), slice = new Slice();
    let wait = FIRST_WAIT;
    while (!reading.signal.aborted) {
      let last = null;
      try {
        for await (const [number, event] of events(this.id, this.after, reading.signal)) {
          if (reading.signal.aborted) return;
          if (event.tokens_before < this.tokens.count) {
            this.reset();
            if (event.tokens_before > 0) break; // from the first event again
          }
          await this.take(event, slice, reading.signal);
          if (reading.signal.aborted) return;
          this.after = number ?? this.after;
          last = event;
          wait = FIRST_WAIT;
        }
      } catch (error) {
        if (reading.signal.aborted) return;
        this.changed(last, error);
        if (error.status === 401 || error.status === 404) return;
      }
      this.draw();
      if (last && ENDS.includes(last.state) && last.finish_reason !== "continued") return;
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(2 * wait, LONGEST_WAIT);
    }
  }

  async take(event, slice, signal) {
    const { text, tokens, plots } = this;
    text.cut(event.offset);
    const share = event.token_ids.length ? event.seconds / event.token_ids.length : 0;
    for (const [index, id] of event.token_ids.entries()) {
      tokens.push(id, event.sources[index], event.widths[index]);
      plots.token(id, share);
      if (index % 64 === 63) {
        await slice.turn();
        if (signal.aborted) return; // the arrays belong to another run now
      }
    }
    for (const [count, offered] of event.iterations) plots.iteration(count, offered);
    for (const step of [() => text.append(event.text), () => this.outline.read(event.text)]) {
      for (const _ of step()) {
        await slice.turn();
        if (signal.aborted) return;
      }
    }
    this.loops.push(...event.loops);
    this.plan(event);
    await slice.turn();
  }

  // Draws once a frame at most.
  plan(event) {
    this.newest = event;
    if (this.planned) return;
    this.planned = true;
    const draw = () => {
      this.planned = false;
      this.draw();
    };
    if (document.hidden) setTimeout(draw, 200);
    else requestAnimationFrame(draw);
  }

  draw() {
    this.colours.update();
    if (this.follow) this.text.element.scrollTop = this.text.element.scrollHeight;
    const now = performance.now();
    if (now - this.drawn > 500 || !this.reading || ENDS.includes(this.newest?.state)) {
      this.drawn = now;
      this.plots.draw();
      this.words.textContent = `${this.text.words.toLocaleString("en")} words`;
    } else {
      clearTimeout(this.late);
      this.late = setTimeout(() => this.draw(), 500);
    }
    if (this.newest) this.changed(this.newest, null);
  }

  showLoop(loop) {
    const { text, tokens } = this;
    const start = text.unit(tokens.start(loop.start)), end = text.unit(tokens.ends[Math.min(loop.end, tokens.count) - 1]);
    this.marks.set("loop", text.ranges(start, end));
    text.reveal(start);
  }
}
