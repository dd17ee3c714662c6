// Draw the strip of a film's sections, and change the values of single sections, which are JSON in hidden boxes, so that one
// editor serves a hundred sections. Functions with `all` take and return the JSON of all sections' values.
import { make, makeButton, showList } from './dom.js';

// File name -> the section that the file was dropped on: when its upload ends, another section may be open.
const dropped = new Map();
let touched = null;

const parse = (all) => JSON.parse(all || '{}');

function put(all, section, value) {
  if (section === '') return all;
  const values = parse(all);
  if (value === undefined) delete values[section];
  else values[section] = value;
  return JSON.stringify(values);
}

/** Return '', for no open section, until the clicked one's values are in the editor; else they would go to the previous one. */
export const closeSection = () => '';

export const setPrompt = (value, section, all) => put(all, section, value?.trim() ? value : undefined);

export const removePicture = (_, section, all) => put(all, section, undefined);

/** Set a section's LoRA scale. 1 is the default and not stored; 0 is stored; null, from an empty box, too, and is refused. */
export const setScale = (value, section, all) => put(all, section, value === 1 ? undefined : value);

/** Give an uploaded picture to the section that it was dropped on; return [all, that section if it is open, else '']. */
export function setPicture(value, section, all) {
  const own = dropped.get(value?.orig_name) ?? touched ?? section;
  dropped.delete(value?.orig_name);
  return [value ? put(all, own, value.path) : all, own === section ? own : ''];
}

/** Return "SECTION TIME" if the section's picture is not shown because it came while the section was being opened, else ''. */
export function latePicture(shown, section, all) {
  const own = parse(all)[section];
  return own && shown?.path !== own ? `${section} ${Date.now()}` : '';
}

/** Copy keyframe 0 into the other even sections, and keyframe 1 into the odd ones. strip: the strip's value. */
export function copyKeyframes(all, strip, overwrite) {
  const values = parse(all);
  for (let section = 2; section < strip.count; section++) {
    if (values[section % 2] && (overwrite || !values[section])) values[section] = values[section % 2];
  }
  return JSON.stringify(values);
}

function noteSection(event) {
  if (!event.target.closest?.('#section-picture')) return;
  touched = document.querySelector('#section-title [data-section]')?.dataset.section ?? null;
  for (const file of event.dataTransfer?.files || event.target.files || []) dropped.set(file.name, touched);
}

function cellParts(cell) {
  const top = make('span', 'top');
  top.append(make('span', 'time', cell.time), make('span', 'number', cell.number));
  const parts = [top];
  if (cell.picture !== undefined) {
    const picture = make('span', `picture${cell.inherited ? ' inherited' : ''}`);
    if (cell.picture) picture.append(Object.assign(make('img'), { src: cell.picture, alt: '' }));
    picture.append(make('span', 'note', cell.note));
    parts.push(picture);
  }
  parts.push(make('span', `prompt${cell.own ? '' : ' common'}`, cell.prompt));
  if (cell.lora) parts.push(make('span', 'lora', cell.lora));
  return parts;
}

/** Draw the strip; a click on a cell carries its section. */
export function show({ element, props, trigger, watch }) {
  const strip = element.querySelector('.strip');
  let selected = null;

  function createCell(cell) {
    const button = makeButton('', '', () => {
      selected = cell.number;
      redraw();
      trigger('click', { section: cell.number });
    });
    button.dataset.section = cell.number;
    button.setAttribute('role', 'option');
    return button;
  }

  function fillCell(button, cell) {
    button.className = cell.tone + (cell.gone ? ' gone' : '');
    button.setAttribute('aria-selected', cell.number === selected);
    button.replaceChildren(...cellParts(cell));
  }

  function redraw() {
    const { cells = [], label = '' } = props.value || {};
    const left = strip.scrollLeft;
    const focused = document.activeElement?.closest?.('[data-section]')?.dataset.section;
    strip.setAttribute('aria-label', label);
    showList(strip, cells, (cell) => cell.number, createCell, fillCell);
    strip.scrollLeft = left;
    if (focused !== undefined) strip.querySelector(`[data-section="${focused}"]`)?.focus({ preventScroll: true });
  }

  for (const kind of ['drop', 'change', 'click', 'paste']) document.addEventListener(kind, noteSection, true);
  redraw();
  watch('value', redraw);
}
