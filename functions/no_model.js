// @ts-self-types="./tiny.d.ts"
/** In the place of tiny.js: a Worker without a bundled model, which wants `MODEL` in R2: `cf:deploy --alias ./tiny.js:./no_model.js`. */
export default {};
