// One token: its source, its probability, the likeliest tokens at its place, and branches from there.

import { get } from "/page/api.js";
import { SOURCES } from "/page/tokens.js";

const BY = { target: "drawn by the target", head: "drafted by the heads", ngram: "drafted by n-grams" };

export class Inspector {
  constructor(parts, text, tokens, marks, branch) {
    Object.assign(this, { ...parts, text, tokens, marks, branch, run: null, index: null, asking: null });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.show(Number(this.number.value) - 1, true);
    });
    this.back.addEventListener("click", () => this.show((this.index ?? 1) - 1, true));
    this.on.addEventListener("click", () => this.show((this.index ?? -1) + 1, true));
    this.button.addEventListener("click", () => this.branch(this.index));
  }

  clear(run) {
    this.asking?.abort();
    this.run = run;
    this.index = null;
    this.output.replaceChildren();
    this.button.hidden = true;
    this.hint.hidden = false;
    this.number.value = "";
    this.marks.set("chosen", []);
  }

  async show(index, reveal = false) {
    const { tokens, text } = this;
    if (!Number.isInteger(index) || index < 0 || index >= tokens.count) {
      this.output.textContent = tokens.count ? `Give a number from 1 to ${tokens.count}.` : "There are no tokens yet.";
      return;
    }
    this.asking?.abort();
    this.asking = new AbortController();
    this.index = index;
    this.number.value = index + 1;
    this.button.hidden = false;
    this.hint.hidden = true;
    const start = text.unit(tokens.start(index)), end = text.unit(tokens.ends[index]);
    this.marks.set("chosen", text.ranges(start, end));
    if (reveal) text.reveal(start);
    const source = BY[SOURCES[tokens.sources[index]]];
    this.output.textContent = `Token ${index + 1}, ${source}. Its probabilities are on their way…`;
    try {
      const found = await get(`/v1/runs/${this.run}/tokens/${index}?top=10`, this.asking.signal);
      this.fill(index, found, source);
    } catch (error) {
      if (error.name !== "AbortError") this.output.textContent = `Token ${index + 1}, ${source}. ${error.message}`;
    }
  }

  fill(index, found, source) {
    const line = made("p"), table = made("table"), body = made("tbody"), head = made("tr");
    line.append(`Token ${index + 1}: `, code(found.text), `, id ${found.token_id}, ${source}, probability ${percent(found.logprob)}.`);
    for (const title of ["Token", "Probability", "Branch"]) {
      const cell = made("th", title);
      cell.scope = "col";
      head.append(cell);
    }
    body.append(head);
    for (const each of found.top) {
      const row = made("tr"), name = made("th"), button = made("button", "with it…");
      name.scope = "row";
      name.append(code(each.text));
      button.type = "button";
      button.setAttribute("aria-label", `Branch with ${JSON.stringify(each.text)}`);
      button.addEventListener("click", () => this.branch(index, each));
      if (each.token_id === found.token_id) row.className = "drawn";
      const number = made("td", percent(each.logprob)), last = made("td");
      number.className = "number";
      if (each.token_id === found.token_id) last.append("drawn");
      else last.append(button);
      row.append(name, number, last);
      body.append(row);
    }
    table.append(body);
    this.output.replaceChildren(line, table);
  }
}

function made(name, text = "") {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

// A token with its line ends and spaces as signs; it may be no whole character.
const code = (text) => made("code", text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣"));

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share >= 99.95 ? "100%" : share >= 1 ? `${share.toFixed(1)}%` : share >= 0.001 ? `${share.toPrecision(2)}%` : "under 0.001%";
}
