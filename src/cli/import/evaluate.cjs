// Evaluates an ecosystem file, and writes what it means as one JSON text to fd 0: a pipe, so that
// nothing the file prints can get into it.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { createRequire } = require('node:module');
const { pathToFileURL } = require('node:url');

const file = process.argv[1];

function answer(value) {
  const bytes = Buffer.from(JSON.stringify(value, plain));
  for (let at = 0; at < bytes.length;) {
    try {
      at += fs.writeSync(0, bytes, at);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
    }
  }
}

// What JSON would drop or mangle in silence gets a name.
function plain(key, value) {
  if (value === undefined) return { $pmr: 'undefined' };
  if (typeof value === 'function') return { $pmr: 'function' };
  if (typeof value === 'symbol') return { $pmr: 'symbol' };
  if (typeof value === 'bigint') return String(value);
  if (typeof value === 'number' && !Number.isFinite(value)) return { $pmr: String(value) };
  if (value instanceof RegExp) return { $pmr: 'regexp', text: String(value) };
  return value;
}

async function evaluate() {
  const extension = path.extname(file).toLowerCase();
  if (extension === '.yaml' || extension === '.yml') return yaml();
  if (extension === '.json' || extension === '.json5') return json();
  const module = extension === '.mjs' ? await import(pathToFileURL(file)) : await required();
  let value = module?.default !== undefined && isModule(module) ? module.default : module;
  if (typeof value === 'function') value = value();
  return await value;
}

function isModule(module) {
  return module.__esModule === true || module[Symbol.toStringTag] === 'Module';
}

async function required() {
  try {
    return createRequire(file)(file);
  } catch (error) {
    if (error.code === 'ERR_REQUIRE_ESM' || error.code === 'ERR_REQUIRE_ASYNC_MODULE') {
      return await import(pathToFileURL(file));
    }
    throw error;
  }
}

// As PM2 does: an expression of JavaScript, so comments and trailing commas are fine.
function json() {
  const text = fs.readFileSync(file, 'utf8').replace(/^\ufeff/, '');
  return require('node:vm').runInThisContext(`(${text}\n)`, { filename: file });
}

function yaml() {
  const places = [file, ...pm2Installs()];
  for (const place of places) {
    for (const name of ['yaml', 'js-yaml']) {
      let library;
      try {
        library = createRequire(place)(name);
      } catch {
        continue;
      }
      return (library.load ?? library.parse)(fs.readFileSync(file, 'utf8'));
    }
  }
  throw Object.assign(new Error('no YAML library'), { pmrKind: 'yaml' });
}

function pm2Installs() {
  const found = [];
  for (const directory of (process.env.PATH ?? '').split(path.delimiter)) {
    try {
      found.push(fs.realpathSync(path.join(directory, 'pm2')));
    } catch {
      // Not there.
    }
  }
  return found;
}

// The message, and the lines of the stack that are about the person's own files.
function words(error) {
  if (!(error instanceof Error)) return `it threw ${JSON.stringify(error) ?? String(error)}`;
  const inside = /^\s+at .*(node:|\[eval\])/;
  return String(error.stack ?? error).split('\n').filter((line) => !inside.test(line)).join('\n');
}

evaluate()
  .then((value) => answer({ value }))
  .catch((error) => answer({ error: { kind: error?.pmrKind ?? 'thrown', message: words(error) } }))
  .finally(() => process.exit(0));
