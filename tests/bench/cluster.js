// Node's own cluster, with the restart delay that the others have: cluster.js COUNT.
'use strict';
const cluster = require('cluster');

if (cluster.isPrimary) {
  for (let index = 0; index < Number(process.argv[2]); index += 1) cluster.fork();
  cluster.on('exit', () => setTimeout(() => cluster.fork(), 500));
} else {
  require('./backend.js');
}
