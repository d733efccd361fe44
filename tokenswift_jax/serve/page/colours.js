// Marks in the text by the browser's highlights, which change no node: sources of tokens, matches, a loop, a token.

import { within } from "/page/text.js";

const supported = typeof Highlight === "function" && "highlights" in CSS;
const NAMES = ["head", "ngram", "loop", "found", "current", "chosen"];

export class Marks {
  constructor() {
    this.of = {};
    for (const [order, name] of NAMES.entries()) {
      this.of[name] = supported ? new Highlight() : new Set();
      this.of[name].priority = order;
      if (supported) CSS.highlights.set(name, this.of[name]);
    }
  }

  set(name, ranges) {
    this.of[name].clear();
    for (const range of ranges) this.of[name].add(range);
  }
}

// Colours the blocks on the screen by the sources of their tokens.
export class Colours {
  constructor(marks, text, tokens, root) {
    Object.assign(this, { marks, text, tokens, on: false, visible: new Set() });
    this.watcher = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) this.seen(target.block, isIntersecting);
    }, { root, rootMargin: "200px" });
  }

  watch(block) {
    block.element.block = block;
    this.watcher.observe(block.element);
  }

  clear() {
    this.watcher.disconnect();
    for (const block of this.visible) this.unpaint(block);
    this.visible.clear();
  }

  show(on) {
    this.on = on;
    for (const block of this.visible) {
      this.unpaint(block);
      this.paint(block);
    }
  }

  // Colours text that came since the last call.
  update() {
    for (const block of this.visible) {
      if (block.dropped) this.seen(block, false);
      else this.paint(block);
    }
  }

  seen(block, visible) {
    if (visible) {
      this.visible.add(block);
      this.paint(block);
    } else if (this.visible.delete(block)) this.unpaint(block);
  }

  paint(block) {
    if (!this.on) return;
    const { text, tokens } = this, end = block.start + block.length;
    let at = block.painted ?? block.start;
    block.marked ??= [];
    let index = tokens.at(text.character(at));
    while (at < end && index < tokens.count) {
      const source = tokens.sources[index];
      while (index + 1 < tokens.count && tokens.sources[index + 1] === source && text.unit(tokens.ends[index]) < end) index += 1;
      const stop = Math.min(text.unit(tokens.ends[index]), end);
      if (source && stop > at) {
        const name = source === 1 ? "head" : "ngram", range = within(block, at, stop);
        this.marks.of[name].add(range);
        block.marked.push([name, range]);
      }
      at = Math.max(at, stop);
      index += 1;
    }
    block.painted = at;
  }

  unpaint(block) {
    for (const [name, range] of block.marked ?? []) this.marks.of[name].delete(range);
    block.marked = block.painted = undefined;
  }
}
