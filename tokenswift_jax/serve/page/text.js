// The text of a run in blocks, each one text node. Model text enters the page here, through text nodes alone.

// UTF-16 units after which a block ends at the next line end. The browser lays out and paints a block at once: with 3000
// and colours, the largest task on 100,000 tokens took 36 ms of a core, 24 of them for paint, with 1500 it took 20.
const TARGET = 1500;
const MOST = 4500; // units of a block without a line end
const WORD = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[^\s\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]+/gu;
const NO_WORD_BEFORE = /^[\s\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]/u; // no word goes on here
const NO_WORD_AFTER = /[\s\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]$/u; // nor beyond such an end

const isHigh = (unit) => unit >= 0xd800 && unit < 0xdc00;

export class Text {
  constructor(element, onBlock) {
    this.element = element;
    this.onBlock = onBlock;
    this.onReveal = () => {};
    this.ofNode = new WeakMap();
    this.clear();
  }

  clear() {
    this.element.replaceChildren();
    this.blocks = [];
    this.length = 0; // UTF-16 units
    this.astral = []; // places, in characters, of characters of two units
    this.characters = 0;
  }

  // Adds text; a long one in pieces, between which the caller may yield.
  *append(text) {
    let start = 0;
    while (start < text.length) {
      let block = this.blocks.at(-1);
      const full = !block || block.length >= MOST - 1 || (block.length >= TARGET && block.node.data.endsWith("\n"));
      if (full) block = this.added();
      let end = Math.min(text.length, start + MOST - block.length);
      if (block.length + end - start > TARGET) {
        const line = text.indexOf("\n", start + Math.max(TARGET - block.length - 1, 0));
        if (line >= 0) end = Math.min(end, line + 1);
      }
      if (end < text.length && isHigh(text.charCodeAt(end - 1))) end -= end - 1 > start ? 1 : -1;
      this.extend(block, text.slice(start, end));
      start = end;
      yield;
    }
  }

  added() {
    const element = document.createElement("div"), node = document.createTextNode("");
    element.append(node);
    element.dir = "auto";
    const before = this.blocks.at(-1);
    const block = { element, node, start: this.length, length: 0, first: this.characters, words: this.words,
      goesOn: before?.open ?? false, open: before?.open ?? false, counted: 0 };
    this.blocks.push(block);
    this.ofNode.set(node, block);
    this.element.append(element);
    this.onBlock(block);
    return block;
  }

  extend(block, piece) {
    block.node.appendData(piece);
    block.length += piece.length;
    this.length += piece.length;
    for (let at = 0; at < piece.length; at += 1, this.characters += 1) {
      if (isHigh(piece.charCodeAt(at))) {
        this.astral.push(this.characters);
        at += 1;
      }
    }
    const found = piece.match(WORD)?.length ?? 0;
    block.counted += found - (block.open && !NO_WORD_BEFORE.test(piece) ? 1 : 0);
    block.open = !NO_WORD_AFTER.test(piece);
  }

  get words() {
    const last = this.blocks.at(-1);
    return last ? last.words + last.counted : 0;
  }

  // Drops the text from a place on; a text that goes on after an end may have ended in half a character.
  cut(characters) {
    if (characters >= this.characters) return;
    const unit = this.unit(characters);
    while (this.blocks.length && this.blocks.at(-1).start >= unit) this.drop();
    while (this.astral.length && this.astral.at(-1) >= characters) this.astral.pop();
    this.characters = characters;
    this.length = unit;
    const block = this.blocks.at(-1);
    if (!block) return;
    block.node.data = block.node.data.slice(0, unit - block.start);
    block.length = block.node.data.length;
    const data = block.node.data;
    block.counted = (data.match(WORD)?.length ?? 0) - (block.goesOn && !NO_WORD_BEFORE.test(data) ? 1 : 0);
    block.open = !NO_WORD_AFTER.test(data);
  }

  drop() {
    const block = this.blocks.pop();
    block.dropped = true;
    block.element.remove();
  }

  // The UTF-16 unit of a character's place, and back.
  unit(characters) {
    return characters + below(this.astral, (place) => place < characters);
  }

  character(unit) {
    return unit - below(this.astral, (place, index) => place + index < unit);
  }

  blockAt(unit) {
    const index = below(this.blocks, (block) => block.start <= unit);
    return this.blocks[Math.max(index - 1, 0)];
  }

  // The ranges of the nodes between two units.
  ranges(start, end) {
    const found = [];
    const stop = Math.min(end, this.length);
    for (let at = start; at < stop; ) {
      const block = this.blockAt(at);
      const last = Math.min(stop, block.start + block.length);
      if (last <= at) break;
      found.push(within(block, at, last));
      at = last;
    }
    return found;
  }

  get whole() {
    return this.blocks.map((block) => block.node.data).join("");
  }

  reveal(unit) {
    const block = this.blockAt(unit);
    if (!block) return;
    this.onReveal();
    block.element.scrollIntoView({ block: "start" }); // the blocks before it may have been estimates until now
    const range = document.createRange();
    range.setStart(block.node, Math.min(Math.max(unit - block.start, 0), block.length));
    range.collapse(true);
    const box = range.getBoundingClientRect(), outer = this.element.getBoundingClientRect();
    if (box.top || box.bottom) this.element.scrollTop += box.top - outer.top - outer.height / 3;
  }
}

export const within = (block, start, end) => new StaticRange({ startContainer: block.node,
  startOffset: start - block.start, endContainer: block.node, endOffset: end - block.start });

// The number of entries at the beginning of a sorted array for which `is` holds.
function below(array, is) {
  let low = 0, high = array.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (is(array[middle], middle)) low = middle + 1;
    else high = middle;
  }
  return low;
}
