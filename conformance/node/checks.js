// How a step is told: one JSON object per line on the standard output, as lib.sh describes it.
'use strict';

let count = 0;
const line = (fields) => process.stdout.write(`${JSON.stringify(fields)}\n`);
const text = (value) => (typeof value === 'string' ? value : JSON.stringify(value) ?? String(value));

exports.begin = (client, version) => line({ client, version });
exports.end = () => line({ end: count });

/** Tells whether what came back is what must come back; both are compared as JSON. */
exports.check = (name, wanted, got) => {
  count += 1;
  if (text(wanted) === text(got)) line({ check: name, ok: true });
  else line({ check: name, ok: false, wanted: text(wanted), got: text(got).slice(0, 2000) });
};

/** Runs one step of at most 30 s; an error counts as what came back, and the run goes on. */
exports.step = async (name, wanted, action) => {
  let got;
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error('nothing within 30 s')), 30_000); });
  try {
    got = await Promise.race([action(), late]);
  } catch (error) {
    process.stderr.write(`${name}: ${error.stack}\n`);
    got = `${error.name}: ${error.message}`;
  } finally {
    clearTimeout(timer);
  }
  exports.check(name, wanted, got);
};

/** The part if the error of the action holds it, otherwise what was thrown or returned. */
exports.errorOf = async (action, part) => {
  try {
    return `no error, but ${text(await action())}`;
  } catch (error) {
    const said = `${error.name}: ${error.message}`;
    return said.includes(part) ? part : said;
  }
};

exports.sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until the condition is true, at most this long; what it returned last. */
exports.eventually = async (condition, ms = 10_000) => {
  for (const end = Date.now() + ms; ;) {
    const got = await condition();
    if (got || Date.now() > end) return got;
    await exports.sleep(50);
  }
};
