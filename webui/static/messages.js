// Show errors and notes above the page until the user closes them; equal sentences are shown once.
import { make } from './dom.js';

// The most sentences that are shown, the newest ones.
const MOST = 4;

export function showMessages({ element, props, watch }) {
  const box = element.querySelector('.told');
  const close = element.querySelector('button');
  let lines = [];
  let shownAt = 0;
  close.textContent = '\u00d7';
  close.addEventListener('click', () => {
    lines = [];
    box.hidden = true;
  });

  function show() {
    const value = props.value || {};
    if (!value.lines?.length || value.at === shownAt) return;
    shownAt = value.at;
    close.title = value.close;
    close.setAttribute('aria-label', value.close);
    lines = [...lines.filter((line) => !value.lines.includes(line)), ...value.lines].slice(-MOST);
    box.dataset.look = value.look;
    element.querySelector('ul').replaceChildren(...lines.map((line) => make('li', '', line)));
    box.hidden = false;
  }

  show();
  watch('value', show);
}
