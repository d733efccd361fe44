// Dialogs with a form each. An error stays in the dialog; a success closes it.

export function connect(dialog, submit) {
  const form = dialog.querySelector("form"), error = form.querySelector(".error");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    error.hidden = true;
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    try {
      await submit(form.elements);
      dialog.close();
    } catch (problem) {
      error.textContent = problem.message;
      error.hidden = false;
    } finally {
      button.disabled = false;
    }
  });
  for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
  return (values = {}) => {
    error.hidden = true;
    for (const [name, value] of Object.entries(values)) form.elements[name].value = value;
    if (!dialog.open) dialog.showModal();
  };
}

const WHOLE = ["max_tokens", "min_tokens", "seed", "top_k", "penalty_window", "at"];
const NUMBERS = [...WHOLE, "temperature", "repetition_penalty", "top_p", "min_p"];

// The settings of a form as fields of a body; an empty one is left out.
export function settings(elements) {
  const body = {};
  for (const name of NUMBERS) {
    const text = elements[name]?.value.trim();
    if (text) body[name] = Number(text);
  }
  if (elements.name?.value.trim()) body.name = elements.name.value.trim();
  return body;
}

export const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];
