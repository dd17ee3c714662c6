// Show a model's examples, which are pictures with prompts, and a button that undoes the use of one.
import { make, makeButton, showList } from './dom.js';

/** Show the examples. undo: the number that a click on the undo button carries in place of an example's. */
export function showExamples({ element, props, trigger, watch }, { undo }) {
  const find = (name) => element.querySelector(name);

  function cell(example) {
    const button = makeButton('', '', () => trigger('click', { index: example.index }));
    button.append(Object.assign(make('img'), { src: example.url, alt: '' }), example.prompt);
    return button;
  }

  function show() {
    const value = props.value || {};
    const examples = value.examples || [];
    find('.undo').hidden = !value.undo;
    find('.undo').textContent = value.undo || '';
    find('.title').hidden = !examples.length;
    find('.row').hidden = !examples.length;
    find('.title').textContent = value.title || '';
    const numbered = examples.map((example, index) => ({ ...example, index }));
    showList(find('.row'), numbered, (example) => JSON.stringify(example), cell);
  }

  find('.undo').addEventListener('click', () => trigger('click', { index: undo }));
  show();
  watch('value', show);
}
